"""The commands, run in this process; one test starts the real entry point."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import vilvm
from vilvm.cli import main
from vilvm.cli._data import read_data

MINE = """
import pyro
import pyro.distributions as dist
import torch

class Mine(torch.nn.Module):
    def __init__(self, data_dim, latent_dim=1, *, scale=1.0):
        super().__init__()
        self.decoder = torch.nn.Linear(latent_dim, data_dim)
        self.encoder = torch.nn.Linear(data_dim, latent_dim)
        self.latent_dim, self.scale = latent_dim, scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

def mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0).expand([y.shape[1]]).to_event(1), obs=y)

def broken(y):
    raise RuntimeError("my own fault")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with data files and a file of models, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(60, 5))
    np.save("x.npy", x)
    frame = pd.DataFrame(x, columns=list("abcde"))
    frame.assign(name="text").to_csv("x.csv", index=False)
    Path("mine.py").write_text(MINE, encoding="utf-8")
    return tmp_path


def run(capsys, *words):
    """Status, output and errors of a command."""
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def refusal(capsys, *words):
    status, _, err = run(capsys, *words)
    assert status == 2
    assert err.count("\n") == 1
    assert len(err.split()) < 60
    return err


def trained(capsys, *more):
    return run(capsys, "train", "ppca", "x.npy", "--steps", 20, "--out", "run", *more)


def test_columns_are_taken_by_the_names_of_training(folder, capsys):
    pd.read_csv("x.csv")[["name", "e", "d", "c", "b", "a"]].to_csv(
        "turned.csv", index=False
    )
    train = (
        "train",
        "ppca",
        "x.csv",
        "--columns",
        "a,b,c",
        "--steps",
        5,
        "--set",
        "latent_dim=1",
    )
    assert run(capsys, *train, "--out", "run")[0] == 0
    tables = [
        run(capsys, "evaluate", "run", name)[1] for name in ("x.csv", "turned.csv")
    ]
    assert all("3 columns used: a, b, c" in table for table in tables)
    numbers = [[line for line in t.splitlines() if "│" in line] for t in tables]
    assert numbers[0] == numbers[1]
    message = refusal(capsys, "evaluate", "run", "x.csv", "--columns", "c,b,a")
    assert "another order than in training (a, b, c)" in message


# Commands
# ----------------------------------------------------------------------------------------


def test_train_then_evaluate(folder, capsys):
    status, out, _ = trained(
        capsys, "--set", "latent_dim=2", "--validation", 0.2, "--batch-size", 10
    )
    assert status == 0
    assert "Trained PPCA for 20 steps" in out
    assert "validation_elbo" in out
    names = {path.name for path in Path("run").iterdir()}
    assert names >= {
        "model.safetensors",
        "history.csv",
        "settings.json",
        "results.json",
    }
    settings = json.loads(Path("run/settings.json").read_text(encoding="utf-8"))
    assert settings["set"] == {"latent_dim": 2}
    lvm = vilvm.load("run/model.safetensors")
    assert lvm.W.shape == (5, 2)
    status, out, _ = run(
        capsys, "evaluate", "run", "x.csv", "--samples", 20, "--out", "scores"
    )
    assert status == 0
    assert "left out, not numeric: name" in out
    found = json.loads(Path("scores/evaluation.json").read_text(encoding="utf-8"))
    expected = vilvm.evaluate(lvm, read_data(Path("x.npy")), num_samples=20)
    # a .csv has rounded numbers
    iwae = found["bounds"]["iwae"]["mean"]
    assert iwae == pytest.approx(expected.bounds["iwae"].mean, abs=1e-5)
    assert f"{expected.bounds['iwae'].mean:.3f}" in out
    table = pd.read_csv("scores/per_datum.csv")
    assert list(table) == [
        "datum",
        "elbo",
        "iwae",
        "exact",
        "rate",
        "distortion",
        "ess",
    ]
    np.testing.assert_allclose(table["elbo"], expected.bounds["elbo"].values, 1e-4)


def test_model_of_the_user(folder, capsys):
    made = ("--set", "latent_dim=2", "--set", "scale=0.5")
    words = ("train", "mine.py:Mine", "x.csv", "--columns", "a,b,c", "--steps", 5)
    assert run(capsys, *words, *made, "--out", "mine")[0] == 0
    words = ("evaluate", "mine.py:Mine", "x.csv", "--columns", "a,b,c", "--samples", 5)
    status, out, _ = run(capsys, *words, "--load", "mine")
    assert (status, "not trained" in out) == (0, False)
    status, out, _ = run(capsys, *words)
    assert (status, "Mine is not trained" in out) == (0, True)
    assert "pass the model" in refusal(capsys, "evaluate", "mine", "x.npy")


def test_training_resumes(folder, capsys):
    size = ("--set", "latent_dim=2")
    assert trained(capsys, *size)[0] == 0
    settings = Path("run/settings.json").read_bytes()
    status, _, err = trained(capsys, *size, "--seed", 1)
    assert (status, "continue it with --resume" in err) == (2, True)
    assert Path("run/settings.json").read_bytes() == settings
    assert trained(capsys, *size, "--resume")[0] == 0
    assert "--resume needs --out" in refusal(
        capsys, "train", "ppca", "x.npy", "--resume"
    )


def test_infer_a_function(folder, capsys):
    words = ("infer", "mine.py:mean", "x.csv", "--columns", "a,b", "--budget", 10)
    status, out, _ = run(capsys, *words, "--out", "posterior")
    assert status == 0
    assert "Nothing speaks against these draws" in out
    summary = pd.read_csv("posterior/summary.csv").set_index("name")
    x = read_data(Path("x.npy")).x[:, :2]
    exact = float(x.sum() / (x.numel() + 0.01))
    assert abs(summary.loc["mu", "mean"] - exact) < 6 * summary.loc["mu", "mcse"] + 1e-3
    draws = pd.read_csv("posterior/draws.csv")
    assert abs(draws["mu"].mean() - summary.loc["mu", "mean"]) < 1e-5
    found = json.loads(Path("posterior/posterior.json").read_text(encoding="utf-8"))
    assert found["trusted"]
    assert found["log_evidence"]["mean"] < 0


@pytest.mark.slow
def test_diagnose_and_report(folder, capsys):
    trained(capsys, "--set", "latent_dim=2")
    status, out, _ = run(
        capsys, "diagnose", "run", "x.npy", "--budget", 10, "--out", "found"
    )
    assert status == 0
    found = json.loads(Path("found/diagnosis.json").read_text(encoding="utf-8"))
    assert out.startswith(found["verdict"])
    assert len(pd.read_csv("found/findings.csv")) == len(found["findings"])
    words = ("report", "run", "x.npy", "--budget", 10, "--samples", 20, "--out", "page")
    assert run(capsys, *words)[0] == 0
    page = Path("page/page.html").read_text(encoding="utf-8")
    assert "PPCA on x" in page
    assert "IWAE-20" in page


@pytest.mark.slow
def test_infer_eight_schools(folder, capsys):
    y = [28.0, 8, -3, 7, -1, 1, 18, 12]
    sigma = [15.0, 10, 16, 11, 9, 11, 10, 18]
    pd.DataFrame({"y": y, "sigma": sigma}).to_csv("schools.csv", index=False)
    words = ("infer", "eight_schools", "schools.csv", "--each", "--out", "posterior")
    assert run(capsys, *words)[0] == 0
    summary = pd.read_csv("posterior/summary.csv").set_index("name")
    assert 3.5 < summary.loc["mu", "mean"] < 5.5  # 4.4 by long chains


# Data
# ----------------------------------------------------------------------------------------


def test_forms_of_a_table(folder):
    x = read_data(Path("x.npy")).x
    assert x.dtype == torch.float32
    assert torch.allclose(read_data(Path("x.csv"), ["c", "a"]).x, x[:, [2, 0]])
    covariates, y = read_data(Path("x.csv"), ["a", "b", "c"], target="b").x
    assert torch.equal(covariates, x[:, [0, 2]])
    assert torch.equal(y, x[:, 1])
    vectors = read_data(Path("x.csv"), ["a", "b"], each=True).x
    assert [tuple(v.shape) for v in vectors] == [(60,), (60,)]


def test_zarr_and_parquet(folder):
    zarr = pytest.importorskip("zarr")
    x = np.load("x.npy")
    zarr.save_array("x.zarr", x)
    assert torch.equal(read_data(Path("x.zarr")).x, read_data(Path("x.npy")).x)


def test_parquet(folder):
    pytest.importorskip("pyarrow")
    pd.read_csv("x.csv").to_parquet("x.parquet")
    assert torch.equal(read_data(Path("x.parquet")).x, read_data(Path("x.csv")).x)


@pytest.mark.filterwarnings("ignore")
def test_anndata(folder):
    anndata = pytest.importorskip("anndata")
    anndata.AnnData(np.load("x.npy")).write_h5ad("x.h5ad")
    assert torch.equal(read_data(Path("x.h5ad")).x, read_data(Path("x.npy")).x)


# Bad input: one sentence, status 2
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "vea", "x.npy"), "did you mean vae"),
        (("train", "no.py:Model", "x.npy"), "no.py: there is no such file"),
        (("train", "mine.py:Yours", "x.npy"), "has no class or function 'Yours'"),
        (("train", "mine.py:mean", "x.npy"), "mean has no guide"),
        (("train", "ppca", "no.npy"), "no.npy: there is no such file"),
        (("train", "ppca", "mine.py"), "unknown kind of file '.py'"),
        (("train", "ppca", "bad.csv"), "column 'a' has 1 missing or infinite values"),
        (("train", "ppca", "empty.csv"), "cannot be read as a table"),
        (("train", "ppca", "x.csv", "--columns", "a,q"), "has no column 'q'"),
        (("train", "ppca", "x.csv", "--target", "name"), "'name' is not numeric"),
        (("train", "ppca", "x.npy", "--target", "y"), "has no names of columns"),
        (("train", "ppca", "x.npy", "--set", "width=2"), "its arguments are data_dim"),
        (("train", "ppca", "x.npy", "--set", "latent_dim=9"), "latent_dim must be"),
        (("train", "vae", "x.npy", "--epochs", "1"), "binarise"),
        (("evaluate", ".", "x.npy"), "holds no model.safetensors"),
        (("evaluate", "x.npy", "x.npy"), "no file of vilvm.save"),
        (("evaluate", "ppca", "x.npy", "--load", "no"), "cannot be read"),
        (("infer", "mine.py:broken", "x.npy"), "my own fault"),
        (
            ("train", "ppca", "x.npy", "--validation", "0.001"),
            "leaves none on one side",
        ),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, words, message):
    Path("bad.csv").write_text("a,b\n1,2\n,3\n", encoding="utf-8")
    Path("empty.csv").write_text("", encoding="utf-8")
    if words[0] == "train":
        words = (*words, "--out", "run")
    assert message in refusal(capsys, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "COMMAND"),
        (("train", "ppca", "x.npy", "--epochs", "0"), "must be at least 1"),
        (("train", "ppca", "x.npy", "--set", "latent_dim"), "must be NAME=VALUE"),
        (("train", "ppca", "x.npy", "--lr", "0"), "must be positive and finite"),
        (("train", "ppca", "x.npy", "--epochs", "1", "--steps", "1"), "not allowed"),
        (("train", "ppca", "x.npy", "--validation", "1"), "below 1"),
    ],
)
def test_command_line_that_cannot_be_parsed(folder, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_every_command_has_an_example_in_its_help(capsys):
    for command in ("train", "evaluate", "diagnose", "infer", "report"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert f"\n    vilvm {command} " in capsys.readouterr().out


def test_the_entry_point_helps_without_importing_torch(folder):
    command = Path(sys.executable).with_name("vilvm")
    if not command.exists():
        pytest.skip("vilvm is not installed in this environment")
    done = subprocess.run(
        [command, "train", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    code = "import sys, vilvm.cli._parser as p; p.parser_of(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n"
    module = [sys.executable, "-m", "vilvm", "train"]
    done = subprocess.run(module, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "arguments are required: MODEL, DATA" in done.stderr
