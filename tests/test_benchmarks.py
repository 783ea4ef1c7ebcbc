"""The benchmarks import, and compute their statistics correctly; times are not tested."""

import ast
import importlib
import json
from pathlib import Path

import pytest

from benchmarks import first_seconds, gpu, svi_step
from benchmarks.interleaved import race, report
from benchmarks.readability import LIMITS, cyclomatic, measure, package_files
from benchmarks.results import figure, markdown, rows_of

BENCHMARKS = sorted(
    p.stem
    for p in (Path(__file__).parents[1] / "benchmarks").glob("*.py")
    if p.stem not in ("__init__", "interleaved")
)
FAULTS = [f"faults.{name}" for name in ("__main__", "growth", "kills", "ranks")]


@pytest.mark.parametrize("name", [*BENCHMARKS, *FAULTS])
def test_benchmark_imports(name):
    if name == "hierarchical_references":  # of the group bench
        pytest.importorskip("numpyro")
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_cases_run_in_turn_against_the_first(capsys):
    order = []
    seconds = race(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=3,
        warmup=1,
    )
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    report("title", {"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]})
    assert "| b | 4 | 2.00 (2.00 to 2.00) |" in capsys.readouterr().out


def test_ratios_are_taken_within_a_round():
    ms = {"base": [2.0, 4.0, 2.0], "half": [1.0, 2.0, 1.0], "floor": [0.5, 1.0, 0.5]}
    rows = rows_of("vae", 128, ms, "base", "floor")
    assert [r.contender for r in rows] == ["floor", "half", "base"]
    assert [r.ratio_to_eager for r in rows] == [4, 2, 1]
    assert [r.ratio_to_floor for r in rows] == [1, 2, 4]
    assert rows[1].median_ms == rows[1].min_ms == 1.0
    assert "| half | 1 | 1 | 2.00 (2.00 to 2.00) | 2.00 |" in markdown(rows)
    assert len(figure(rows).axes) == 1


def test_contender_that_does_not_learn_raises():
    losses = {svi_step.BASE: [10.0, 10.1, 9.9] * 30, "other": [12.0, 12.1, 11.9] * 30}
    with pytest.raises(AssertionError, match="other reaches a loss of 12"):
        svi_step._check_losses(losses)
    svi_step._check_losses({**losses, "other": [10.0, 10.1, 9.9] * 30})


@pytest.mark.slow
def test_contenders_of_eight_schools_run(tmp_path):
    file = tmp_path / "rows.json"
    svi_step.main(["--workload", "eight_schools", "--rounds", "2", "--json", str(file)])
    found = json.loads(file.read_text())
    assert {
        "contender",
        "workload",
        "batch",
        "median_ms",
        "min_ms",
        "ratio_to_eager",
        "ratio_to_floor",
    } <= set(found["rows"][0])
    speed = {row["contender"]: row["ratio_to_eager"] for row in found["rows"]}
    assert speed["vilvm compiled"] > 5 * speed["Pyro SVI.step"]


MADE_UP = '''"""A docstring is no code."""


def first(a, b, c, d, e, f):  # a comment is none either
    """Nor is this."""
    return a if b and c else [x for x in d if x]


def second(x):
    for y in x:
        assert y, "told"
    return 1 if x else 2 if y else 3
'''


@pytest.mark.slow
def test_first_seconds_are_measured_in_a_process_of_their_own(tmp_path):
    times = first_seconds.measure(["vilvm eager"], "eight_schools", 3, 1)
    assert [*times] == ["cold, vilvm eager", "warm, vilvm eager"]
    (imports,), (first,), (last,) = times["cold, vilvm eager"].values()
    assert 0 < first < last
    assert imports > 0.1
    assert "| warm, vilvm eager |" in first_seconds.table(times)
    first_seconds.figure({"eight schools": times}).savefig(tmp_path / "figure.png")


def test_readability_counts_code_without_docstrings(tmp_path):
    file = tmp_path / "made_up.py"
    file.write_text(MADE_UP + "long = " + "1" * 100 + "\n")
    found = measure([file])
    assert (found.lines, found.tokens, found.conditionals, found.complexity) == (
        7,
        60,
        3,
        5,
    )
    assert [place.split(": ", 1)[1] for place in found.places] == [
        "'told'",
        "107 characters",
        "nested conditional expression",
        "first has 6 positional parameters",
    ]


@pytest.mark.parametrize(
    ("code", "complexity"),
    [
        ("return x", 1),
        ("return x or y or z", 3),
        ("return [a for a in x if a if a.b]", 4),
        ("if x: return 1\n elif y: return 2", 3),
        ("def inner():\n  if x: return 1", 1),
    ],
)
def test_readability_counts_decisions(code, complexity):
    assert cyclomatic(ast.parse(f"def f(x):\n {code}").body[0]) == complexity


def test_readability_of_the_package_keeps_the_limits():
    found = measure(package_files())
    assert found.places == []
    assert found.complexity <= LIMITS.complexity
    assert found.tokens / found.lines <= LIMITS.tokens
    assert 1000 * found.conditionals / found.lines <= LIMITS.conditionals


# Checks on a GPU
# --------------------------------------------------------------------------------------------


def test_checks_of_a_gpu_go_on_after_one_that_fails(monkeypatch, tmp_path):
    outcomes = {
        "first": "passed",
        "compiled": "stopped after 120 s",
        "resume": "passed",
    }
    monkeypatch.setattr(
        gpu,
        "run_apart",
        lambda name, device, limit: {
            "check": name,
            "outcome": outcomes[name],
            "seconds": 1.0,
        },
    )
    out = tmp_path / "outcomes.jsonl"
    assert gpu.run_all([*outcomes], "cuda", 500, out) == ["compiled"]
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["check"]: row["outcome"] for row in written} == outcomes
    assert gpu.run_all(["first"], "cuda", 5, None) == ["first"]  # no time left


def test_a_check_of_a_gpu_is_stopped_at_its_limit():
    found = gpu.run_apart("first", "cpu", 0.5)
    assert found["outcome"].startswith("stopped")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "resume", "infer"])
def test_checks_of_a_gpu_pass_on_the_cpu(name):
    assert gpu.run_apart(name, "cpu", 300)["outcome"] == "passed"
