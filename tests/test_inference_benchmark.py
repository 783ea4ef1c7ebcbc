"""The benchmark of inference methods scores, grades and resumes correctly; no time is tested."""

import json
import math
import subprocess
from types import SimpleNamespace

import pytest
import torch

import vilvm
from benchmarks import posteriordb as benchmark
from benchmarks.inference.child import known_posteriors, run_one
from benchmarks.inference.scores import grade, score
from benchmarks.inference.table import Row, markdown, summary, with_ratios
from tests.models.exact import posteriordb_or_skip
from vilvm.data.datasets import ReferencePosterior
from vilvm.models.posteriordb import names, posterior

NAME = "kilpisjarvi_mod-kilpisjarvi"


def reference(**sds):
    """A reference posterior of zero means and these standard deviations."""
    unit = torch.tensor([[-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    return ReferencePosterior("a-b", {}, {n: sd * unit for n, sd in sds.items()})


def draws(mean, sd):
    return mean + sd * torch.tensor([-1.0, 1.0]) / math.sqrt(2)


# Scores
# --------------------------------------------------------------------------------------------


def test_score_is_that_of_the_worst_scalars():
    found = score(
        {"a": draws(1.0, 10.0), "b": draws(-0.5, 2.2), "c": draws(0.0, 0.4)},
        reference(a=10.0, b=2.0, c=1.0),
    )
    assert found.mean_scalar == "b"
    assert found.mean_error == pytest.approx(-0.25)
    assert found.sd_scalar == "c"
    assert found.sd_ratio == pytest.approx(0.4)
    assert found.grade == "misses"


def test_ratios_are_compared_in_their_logarithm():
    found = score({"a": draws(0, 1.9), "b": draws(0, 0.5)}, reference(a=1.0, b=1.0))
    assert found.sd_scalar == "b"


def test_grade_is_that_of_all_scalars():
    # 0.905 is farther from 1 in its logarithm, but 1.104 exceeds ten per cent
    found = score({"a": draws(0, 0.905), "b": draws(0, 1.104)}, reference(a=1.0, b=1.0))
    assert (found.sd_scalar, found.grade) == ("a", "usable")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_draws_that_are_not_finite_miss(value):
    bad = torch.tensor([0.0, value])
    found = score({"a": draws(0, 1.2), "b": bad}, reference(a=1.0, b=1.0))
    assert (found.mean_scalar, found.sd_scalar, found.grade) == ("b", "b", "misses")


def test_one_point_has_no_spread():
    found = score({"a": torch.zeros(5)}, reference(a=1.0))
    assert (found.sd_ratio, found.grade) == (0.0, "misses")


@pytest.mark.parametrize(
    ("error", "ratio", "expected"),
    [
        (0.1, 1.0, "good"),
        (-0.09, 1.09, "good"),
        (0.11, 1.0, "usable"),
        (0.0, 0.89, "usable"),
        (-0.29, 1.29, "usable"),
        (0.31, 1.0, "misses"),
        (0.0, 0.69, "misses"),
        (math.nan, 1.0, "misses"),
        (0.0, math.nan, "misses"),
    ],
)
def test_grades(error, ratio, expected):
    assert grade(error, ratio) == expected


# Tables
# --------------------------------------------------------------------------------------------


def row(method, seed=0, grade="good", seconds=5.0, posterior="a", **others):
    known = {
        "mean_error": 0.05,
        "mean_scalar": "mu",
        "sd_ratio": 1.0,
        "sd_scalar": "mu",
    }
    rest = {**known, "cpu_seconds": seconds, "wall_seconds": 1.0, "gradients": 1000}
    return Row(posterior, method, seed, grade=grade, **{**rest, **others})


FAILED = Row("b", "infer", 0, cpu_seconds=1.0, error="ValueError: no")
ROWS = with_ratios(
    [
        row("infer", trusted=True, mean_error=-0.2, grade="usable", rung="refine"),
        row("infer", 1, trusted=True, mean_error=0.9, grade="misses", seconds=61.0),
        FAILED,
        row("nuts", seconds=10.0),
        row("nuts", 1, seconds=20.0),
        row("nuts", posterior="b"),
    ]
)


def test_ratios_are_of_the_same_posterior_and_seed():
    assert [r.ratio for r in ROWS] == [0.5, 3.05, None, 1.0, 1.0, 1.0]


def test_table_has_the_worst_seed_and_median_costs():
    lines = markdown(ROWS).splitlines()
    assert lines[2] == (
        "| a | infer | +0.900 (mu) | 1.000 (mu) | misses | 2 of 2 | refine | 33.0 | 1.0 "
        "| 1,000 | 1.77 |"
    )
    assert lines[4] == (
        "| b | infer | - | - | fails: ValueError: no | - | - | 1.0 | - | - | - |"
    )
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| a", "infer"],
        ["| a", "nuts"],
        ["| b", "infer"],
        ["| b", "nuts"],
    ]


def test_summary_counts_by_seed():
    infer, nuts = summary(ROWS).splitlines()[2:]
    assert infer == "| infer | 0 of 2; 0 of 1 | 1 | 1.77, 3.05 | 0 of 2 |"
    assert nuts == "| nuts | 2 of 2; 1 of 1 | - | 1.00, 1.00 | 2 of 2 |"


# The runner
# --------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch):
    """The runs that the runner asks for; each takes as many seconds as its number."""
    calls = []

    def run(name, method, seed, limit):
        calls.append((name, method, seed))
        return row(method, seed, posterior=name, seconds=float(len(calls)))

    monkeypatch.setattr(benchmark, "run", run)
    return calls


def test_methods_take_turns_and_rows_are_kept(ran, tmp_path, capsys):
    file = tmp_path / "rows.json"
    asked = [NAME, "--methods", "infer", "nuts", "--out", str(file), "--seeds"]
    benchmark.main([*asked, "0", "1"])
    assert ran == [(NAME, m, seed) for seed in (0, 1) for m in ("infer", "nuts")]
    rows = benchmark.read_rows(file)
    assert [r.ratio for r in rows] == [0.5, 1.0, 0.75, 1.0]
    assert "torch" in json.loads(file.read_text())["machine"]
    benchmark.main([*asked, "1", "2"])
    assert ran[4:] == [(NAME, "infer", 2), (NAME, "nuts", 2)]
    assert benchmark.read_rows(file)[:4] == rows
    capsys.readouterr()
    benchmark.main([*asked, "0", "--again"])
    assert ran[6:] == [(NAME, "infer", 0), (NAME, "nuts", 0)]
    assert len(benchmark.read_rows(file)) == 6
    assert f"| {NAME} | infer | +0.050 (mu)" in capsys.readouterr().out


def test_values_that_are_not_finite_survive_the_file(
    ran, tmp_path, monkeypatch, capsys
):
    nan = row("nuts", posterior=NAME, mean_error=math.nan, grade="misses")
    monkeypatch.setattr(benchmark, "run", lambda *_: nan)
    file = tmp_path / "rows.json"
    asked = [NAME, "--methods", "nuts", "--seeds", "0", "--out", str(file)]
    benchmark.main(asked)
    first = capsys.readouterr().out
    benchmark.main(asked)
    assert capsys.readouterr().out == first
    assert f"| {NAME} | nuts | - | 1.000 (mu) | misses |" in first


def test_unknown_posterior_lists_the_known(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["mesquite"])
    assert "mesquite-mesquite" in capsys.readouterr().err


def test_run_that_takes_too_long_fails():
    found = benchmark.run(NAME, "nuts", 0, limit=0.01)
    assert found.grade == "fails"
    assert "stopped after 0 s" in found.error


def test_process_that_breaks_gives_its_last_words(monkeypatch):
    done = subprocess.CompletedProcess([], -9, "", "a\nkilled\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    found = benchmark.run(NAME, "nuts", 0, limit=1.0)
    assert found.error == "its process ended with -9: killed"


def test_known_posteriors_contain_posteriordb():
    assert set(names()) <= set(known_posteriors())


def test_error_of_a_method_is_in_its_row(monkeypatch):
    def fails(method, problem):
        def infer(seed):
            raise ValueError(f"seed {seed}\nmore")

        return infer

    posteriordb_or_skip(NAME, posterior)
    monkeypatch.setattr("benchmarks.inference.child._peer", fails)
    found = run_one(NAME, "nuts", 3)
    assert (found.grade, found.error) == ("fails", "ValueError: seed 3")
    assert found.cpu_seconds >= 0


@pytest.mark.parametrize("method", ["infer", "unrefined"])
def test_our_method_gets_the_defaults(method, monkeypatch):
    problem = posteriordb_or_skip(NAME, posterior)
    of = problem.reference()
    asked = []

    def infer(model, data, **options):
        asked.append(options)
        draws = {site: of.draws[site].flatten() for site in problem.parameters}
        return SimpleNamespace(
            draws=draws, gradients=7, trusted=True, verdict="trust", rung="gaussian"
        )

    monkeypatch.setattr(vilvm, "infer", infer, raising=False)
    monkeypatch.setattr("benchmarks.inference.child._COMPILER", ())
    found = run_one(NAME, method, 3)
    assert asked == [{"seed": 3} if method == "infer" else {"seed": 3, "refine": False}]
    assert found.mean_error == pytest.approx(0, abs=1e-9)
    assert (found.grade, found.trusted, found.rung) == ("good", True, "gaussian")
    assert (found.verdict, found.gradients, found.error) == ("trust", 7, None)


@pytest.mark.slow
def test_nuts_of_numpyro_is_scored(tmp_path):
    pytest.importorskip("numpyro")
    posteriordb_or_skip(NAME, posterior)
    found = benchmark.run("kidiq-kidscore_momiq", "nuts", 0, limit=300)
    assert found.error is None
    assert found.grade in ("good", "usable")
    assert found.gradients > 2000
    assert found.cpu_seconds > 0.1
