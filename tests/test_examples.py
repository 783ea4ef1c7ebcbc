"""Every example runs, with tiny arguments; found by walking examples/."""

import importlib
import json
import math
from pathlib import Path

import pytest

TINY = {"vae_mnist": ["--data", "digits", "--epochs", "2", "--samples", "20"]}
EXAMPLES = sorted(p.stem for p in (Path(__file__).parents[1] / "examples").glob("*.py") if not p.stem.startswith("_"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, tmp_path):
    assert importlib.import_module(f"examples.{name}").main([*TINY[name], "--out", str(tmp_path / "run")]) == 0


@pytest.fixture
def main():
    return importlib.import_module("examples.vae_mnist").main


@pytest.mark.parametrize(
    "options", [["--likelihood", "gaussian"], ["--latent", "2"], ["--objective", "mean-field", "--latent", "1"]]
)
def test_vae_mnist_writes_its_run_folder(main, tmp_path, options):
    assert main([*TINY["vae_mnist"], *options, "--out", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"settings.json", "history.csv", "checkpoint", "results.json", "figures"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["data"]["name"] == "digits"
    for bound in ("elbo", "iwae"):
        assert math.isfinite(results["bounds"][bound]["mean"])
        assert results["bounds"][bound]["se"] > 0
    assert results["bounds"]["iwae"]["num_samples"] == 20
    assert results["seconds"]["train"] > 0
    assert results["seconds"]["evaluate"] > 0
    assert results["images_per_second"] > 0
    figures = {p.stem for p in (tmp_path / "figures").glob("*.png")}
    assert {"reconstructions", "prior_samples", "interpolations", "elbo", "latents"} <= figures
    assert ("manifold" in figures) == ("2" in options)


def test_vae_mnist_resumes_to_the_same_numbers(main, tmp_path):
    from vilvm.training import checkpoint

    assert main([*TINY["vae_mnist"], "--out", str(tmp_path / "a")]) == 0
    assert main([*TINY["vae_mnist"], "--out", str(tmp_path / "b")]) == 0
    # Taken back to its first checkpoint, a run ends where it did before.
    folder = tmp_path / "b" / "checkpoint"
    for later in sorted(folder.iterdir())[1:]:
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    assert checkpoint.latest(folder).name == "step-000000000"
    assert main(["--resume", str(tmp_path / "b")]) == 0
    numbers = [json.loads((tmp_path / run / "results.json").read_text())["bounds"] for run in "ab"]
    assert numbers[0] == numbers[1]


def test_vae_mnist_refuses_a_folder_that_is_no_run(main, tmp_path):
    with pytest.raises(SystemExit, match="no run of vae_mnist"):
        main(["--resume", str(tmp_path)])


def test_vae_mnist_does_not_overwrite_a_run(main, tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(SystemExit, match="holds a run already"):
        main(["--out", str(tmp_path)])


@pytest.mark.parametrize("settings", ["{}", "[]", "null", '{"latent": "x"}', "\xff", ""])
def test_vae_mnist_refuses_altered_settings(main, tmp_path, settings):
    (tmp_path / "settings.json").write_bytes(settings.encode("latin-1"))
    with pytest.raises(SystemExit, match=r"not as vae_mnist wrote it|no readable settings.json"):
        main(["--resume", str(tmp_path)])


@pytest.mark.parametrize(
    "options", [["--lr", "nan"], ["--lr", "0"], ["--epochs", "0"], ["--warmup", "1"], ["--latent", "x"], ["--data", "cifar"]]
)
def test_vae_mnist_refuses_options_out_of_range(main, options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert f"argument {options[0]}" in capsys.readouterr().err


def test_vae_mnist_refuses_options_beside_resume(main, tmp_path):
    with pytest.raises(SystemExit, match="leave out --epochs"):
        main(["--resume", str(tmp_path), "--epochs", "3"])


def test_vae_mnist_says_where_it_cannot_write(main, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot be written"):
        main([*TINY["vae_mnist"], "--out", str(tmp_path / "file" / "run")])


def test_vae_mnist_says_when_it_is_not_mnist(main, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VILVM_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda self: (_ for _ in ()).throw(RuntimeError("no network")))
    assert main(["--epochs", "1", "--samples", "5", "--out", str(tmp_path / "run")]) == 0
    assert "NOT MNIST" in capsys.readouterr().out
