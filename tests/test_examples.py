"""Every example in examples/ runs, with tiny arguments."""

import csv
import dataclasses
import importlib
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import vilvm
from examples import compare_mnist, denoising_multimodal, image_models, infer
from examples._prescribed import MODELS, fit_case
from vilvm import export
from vilvm._runtime.files import locked

TINY = {
    "vae_mnist": ["--data", "digits", "--epochs", "2", "--samples", "20"],
    "compare_mnist": ["--data", "digits", "--quick", "--latent", "3"],
    "curse_of_dimensionality": [
        "--dimensions",
        "1",
        "3",
        "--samples",
        "200",
        "--data",
        "4",
        "--epochs",
        "2",
    ],
    "posterior_diagnostics": [
        "eight_schools",
        "--guide",
        "mean_field",
        "--steps",
        "100",
        "--temperatures",
        "3",
        "--samples",
        "50",
        "--budget",
        "10",
    ],
    "image_models": ["vq_vae", "--data", "digits", "--epochs", "1", "--samples", "5"],
    "mnist_ledger": [
        "--data",
        "digits",
        "--models",
        "VAE",
        "M2",
        "--epochs",
        "1",
        "--images",
        "10",
        "--samples",
        "10",
    ],
    "latent_spaces": ["--data", "digits", "--epochs", "2", "--steps", "20"],
    "rate_distortion": ["--data", "digits", "--epochs", "1", "--betas", "1", "3"],
    "denoising": ["--data", "digits", "--epochs", "2", "--latent", "8"],
    "denoising_multimodal": [
        "--data",
        "digits",
        "--epochs",
        "2",
        "--steps",
        "20",
        "--proposals",
        "50",
    ],
}
EXAMPLES = sorted(
    p.stem
    for p in (Path(__file__).parents[1] / "examples").glob("*.py")
    if not p.stem.startswith("_")
)


@pytest.fixture
def small(monkeypatch):
    """A smaller budget of compare_mnist --quick."""
    budget = compare_mnist.Budget(
        train=300,
        epochs=1,
        guide_epochs=1,
        flow_steps=10,
        test=20,
        samples=10,
        draws=30,
    )
    monkeypatch.setattr(compare_mnist, "QUICK", budget)


LONG = {
    "denoising_multimodal",
    "image_models",
    "latent_spaces",
    "mnist_ledger",
    "rate_distortion",
    "posterior_diagnostics",
    "curse_of_dimensionality",
    "vae_mnist",
}


OWN = {"compare_mnist", "infer"}  # have their own tests


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in LONG else n
        for n in EXAMPLES
        if n not in OWN
    ],
)
def test_example_runs(name, tmp_path, small):
    assert (
        importlib.import_module(f"examples.{name}").main(
            [*TINY[name], "--out", str(tmp_path / "run")]
        )
        == 0
    )
    assert (tmp_path / "run" / "settings.json").exists()
    assert list((tmp_path / "run" / "figures").glob("*.png"))
    with pytest.raises(SystemExit, match="holds a run already"):
        importlib.import_module(f"examples.{name}").main(
            [*TINY[name], "--out", str(tmp_path / "run")]
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(image_models.MODELS))
def test_every_image_model_is_drawn(name, tmp_path):
    options = ["--data", "digits", "--epochs", "1", "--samples", "5"]
    assert image_models.main([name, *options, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "figures" / f"{name}.png").exists()


@pytest.mark.slow
def test_compare_mnist_resumes_to_the_same_ledger(tmp_path, small):
    run = tmp_path / "run"
    assert compare_mnist.main([*TINY["compare_mnist"], "--out", str(run)]) == 0
    with (run / "ledger.csv").open() as file:
        first = {row["model"]: row for row in csv.DictReader(file)}
    assert len(first) == 27
    above = json.loads((run / "results.json").read_text())["above_vae"]
    expected = float(first["deep AE + flow"]["iwae"]) - float(first["VAE"]["iwae"])
    assert above["deep AE + flow"]["mean"] == pytest.approx(expected, abs=1e-9)
    page = (run / "page.html").read_text()
    assert all(page.count(f'<th scope="row">{model}</th>') for model in first)
    assert "--data=digits" in page
    assert {row["likelihood"] for row in first.values()} == {
        "x ~ Bernoulli",
        "x ~ Normal",
    }
    # two likelihoods, with and without a bound
    assert len({row["group"] for row in first.values()}) == 4
    for row in first.values():
        assert (row["iwae"] == "") == (
            row["model"] in ("deep AE", "conv AE", "denoising AE", "linear AE")
        )
    assert list((run / "figures").glob("*.png"))
    with pytest.raises(SystemExit, match="holds a run already"):
        compare_mnist.main([*TINY["compare_mnist"], "--out", str(run)])
    # The model without a checkpoint is trained again; the others are loaded.
    shutil.rmtree(run / "models" / "conv_AE_flow")
    assert compare_mnist.main(["--resume", str(run)]) == 0
    with (run / "ledger.csv").open() as file:
        second = {row["model"]: row for row in csv.DictReader(file)}
    same = [name for name in first[next(iter(first))] if name != "seconds"]
    assert all(
        first[model][name] == second[model][name] for model in first for name in same
    )


@pytest.mark.slow
def test_compare_mnist_stops_on_interrupt(tmp_path, small, monkeypatch, capsys):
    fit = vilvm.fit

    def interrupted(lvm, *args, **options):
        found = fit(lvm, *args, **options)
        return (
            dataclasses.replace(found, stopped="interrupted")
            if "conv" in str(options["run_dir"])
            else found
        )

    monkeypatch.setattr(vilvm, "fit", interrupted)
    assert compare_mnist.main([*TINY["compare_mnist"], "--out", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().out
    assert not (tmp_path / "ledger.csv").exists()


@pytest.mark.slow
def test_plane_mean_lies_between_modes_draws_in_them(tmp_path):
    assert denoising_multimodal.main(["--only", "plane", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["plane"]
    auto, draws, data = found["auto_encoder"], found["draws"], found["data"]
    assert (
        auto["rms_distance_to_conditional_mean"] < 0.1 * auto["rms_of_conditional_mean"]
    )
    # nats: improbable by a factor of 3,000 at the median
    assert auto["log_density"] < data["log_density"] - 8
    assert abs(draws["log_density"] - data["log_density"]) < 0.2
    # The VAE is an approximation: besides Monte Carlo error, its share of draws in a mode may be
    # off by some hundredths.
    assert (
        draws["upper_share_rms_error"]
        < draws["upper_share_rms_error_of_exact_draws"] + 0.04
    )
    assert abs(draws["upper_share_bias"]) < 0.03


@pytest.fixture
def main():
    return importlib.import_module("examples.vae_mnist").main


@pytest.mark.parametrize(
    "options",
    [
        ["--likelihood", "gaussian", "--latent", "2"],
        pytest.param(
            ["--objective", "mean-field", "--latent", "1"], marks=pytest.mark.slow
        ),
    ],
)
def test_vae_mnist_writes_its_run_folder(main, tmp_path, options):
    assert main([*TINY["vae_mnist"], *options, "--out", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "settings.json",
        "history.csv",
        "run.json",
        "checkpoint",
        "results.json",
        "figures",
        "page.html",
    }
    results = json.loads((tmp_path / "results.json").read_text())
    page = (tmp_path / "page.html").read_text()
    assert f"{results['bounds']['iwae']['mean']:.2f}".replace("-", "−") in page
    # the curves, and the divergences of several dimensions, have no caption
    plots = 1 + (results["latent"] > 1)
    assert page.count("<svg") == page.count("<figcaption>") + plots
    assert "Posterior collapse" in page
    assert results["data"]["name"] == "digits"
    for bound in ("elbo", "iwae"):
        assert math.isfinite(results["bounds"][bound]["mean"])
        assert results["bounds"][bound]["se"] > 0
    assert results["bounds"]["iwae"]["num_samples"] == 20
    assert results["seconds"]["train"] > 0
    assert results["seconds"]["evaluate"] > 0
    assert results["images_per_second"] > 0
    figures = {p.stem for p in (tmp_path / "figures").glob("*.png")}
    assert {
        "reconstructions",
        "prior_samples",
        "interpolations",
        "elbo",
        "latents",
    } <= figures
    assert ("manifold" in figures) == ("2" in options)


@pytest.mark.slow
def test_vae_mnist_resumes_to_the_same_numbers(main, tmp_path):
    from vilvm.training import checkpoint

    assert main([*TINY["vae_mnist"], "--out", str(tmp_path / "a")]) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "results.json").unlink()
    # Resumed from its first checkpoint, a run ends with the same numbers.
    folder = tmp_path / "b" / "checkpoint"
    for later in sorted(folder.iterdir())[1:]:
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    assert checkpoint.latest(folder).name == "step-000000000"
    assert main(["--resume", str(tmp_path / "b")]) == 0
    numbers = [
        json.loads((tmp_path / run / "results.json").read_text())["bounds"]
        for run in "ab"
    ]
    assert numbers[0] == numbers[1]


@pytest.mark.slow
def test_finished_run_is_resumed_in_read_only_folder(
    main, tmp_path, monkeypatch, capsys
):
    """An incomplete report is completed first; then nothing is left to write."""
    run = tmp_path / "run"
    assert main([*TINY["vae_mnist"], "--out", str(run)]) == 0
    whole = (run / "results.json").read_bytes()
    (run / "results.json").unlink()
    (run / "page.html").unlink()
    picture = run / "figures" / "elbo.png"
    left = run / "figures" / ".elbo.png.0123abcd.tmp"
    picture.rename(left)
    assert main(["--resume", str(run)]) == 0
    assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert (run / "page.html").exists()
    assert not left.exists()
    assert (
        json.loads((run / "results.json").read_bytes())["bounds"]
        == json.loads(whole)["bounds"]
    )
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}

    def read_only(path):
        raise PermissionError(13, "Permission denied")

    # root may write anywhere
    monkeypatch.setattr("vilvm._runtime.files._check_not_moved", read_only)
    capsys.readouterr()
    assert main(["--resume", str(run)]) == 0
    assert (
        f"{json.loads(whole)['bounds']['iwae']['mean']:.2f}" in capsys.readouterr().out
    )
    monkeypatch.undo()
    assert {
        file: file.read_bytes() for file in run.rglob("*") if file.is_file()
    } == before


def test_vae_mnist_resume_of_another_folder_raises(main, tmp_path):
    with pytest.raises(SystemExit, match="no run of vae_mnist"):
        main(["--resume", str(tmp_path)])


def test_vae_mnist_does_not_overwrite_a_run(main, tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(SystemExit, match="holds a run already"):
        main(["--out", str(tmp_path)])


@pytest.mark.parametrize(
    "name", ["vae_mnist", "compare_mnist", "denoising", "posterior_diagnostics"]
)
def test_second_process_in_a_folder_changes_nothing(name, tmp_path):
    main = importlib.import_module(f"examples.{name}").main
    with (
        locked(tmp_path),
        ThreadPoolExecutor() as other,
        pytest.raises(SystemExit, match=f"Another process works in {tmp_path}"),
    ):
        other.submit(main, [*TINY[name], "--out", str(tmp_path)]).result()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings", ["{}", "[]", "null", '{"latent": "x"}', "\xff", ""]
)
def test_vae_mnist_with_altered_settings_raises(main, tmp_path, settings):
    (tmp_path / "settings.json").write_bytes(settings.encode("latin-1"))
    with pytest.raises(
        SystemExit, match=r"changed after vae_mnist wrote it|no readable settings.json"
    ):
        main(["--resume", str(tmp_path)])


@pytest.mark.parametrize(
    "options",
    [
        ["--lr", "nan"],
        ["--lr", "0"],
        ["--epochs", "0"],
        ["--warmup", "1"],
        ["--latent", "x"],
        ["--data", "cifar"],
    ],
)
def test_vae_mnist_options_out_of_range_raise(main, options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert f"argument {options[0]}" in capsys.readouterr().err


def test_vae_mnist_options_beside_resume_raise(main, tmp_path):
    with pytest.raises(SystemExit, match="leave out --epochs"):
        main(["--resume", str(tmp_path), "--epochs", "3"])


def test_vae_mnist_reports_a_folder_it_cannot_write(main, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot be written"):
        main([*TINY["vae_mnist"], "--out", str(tmp_path / "file" / "run")])


@pytest.mark.slow
def test_vae_mnist_warns_if_data_are_not_mnist(main, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VILVM_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(
        "torchvision.datasets.MNIST.download",
        lambda self: (_ for _ in ()).throw(RuntimeError("no network")),
    )
    assert (
        main(["--epochs", "1", "--samples", "5", "--out", str(tmp_path / "run")]) == 0
    )
    assert "NOT MNIST" in capsys.readouterr().out


@pytest.mark.slow
def test_run_of_vae_mnist_is_diagnosed(tmp_path, capsys):
    vae, folder = tmp_path / "vae", tmp_path / "diagnosis"
    assert (
        importlib.import_module("examples.vae_mnist").main(
            [*TINY["vae_mnist"], "--out", str(vae)]
        )
        == 0
    )
    main = importlib.import_module("examples.posterior_diagnostics").main
    options = [
        "--num-data",
        "30",
        "--samples",
        "50",
        "--temperatures",
        "3",
        "--budget",
        "20",
    ]
    assert main([str(vae), *options, "--out", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "Pareto k̂" in output
    assert "BDMC gap" in output
    results = json.loads((folder / "results.json").read_text())
    annealed = "AIS from the guide, 16 × 3"
    assert {"ELBO", "IWAE-50", annealed} == set(results["evidence"])
    assert results["bdmc_gap"]["its BDMC gap, on 30 simulated data"]["mean"] > 0
    posterior = export.load(folder / "posterior.nc").posterior
    assert posterior.z.sizes["data"] == 30
    # the images' numbers in the test set, which the findings name too
    assert posterior.coords["data"].max() > 30
    assert "<svg" in (folder / "page.html").read_text()
    with pytest.raises(SystemExit, match="neither a run folder nor a prescribed model"):
        main(["nine_schools", "--out", str(tmp_path / "other")])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_prescribed_model_fits(name):
    case = MODELS[name](None)
    fit_case(case, seed=0, steps=3)
    assert math.isfinite(
        vilvm.evaluate(case.lvm, case.data, num_samples=10, batch_size=len(case.data))
        .bounds["elbo"]
        .mean
    )
    if case.reference is not None and case.scalars is not None:
        drawn = case.scalars(vilvm.posterior(case.lvm, case.data.x, 5))
        assert set(drawn) & set(case.reference.draws) == set(case.reference.draws)


def test_infer_prints_the_posterior_and_its_error(capsys):
    assert infer.main(["--budget", "3", "--no-refine"]) == 0
    out = capsys.readouterr().out
    assert "ESS" in out
    assert "Pareto k̂" in out
    assert "Error against the reference" in out
    assert "theta[8]" in out
    assert "eight_schools_centred: " in out
    assert "gradients" in out


def test_infer_without_the_data_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("VILVM_DATA", str(tmp_path))
    with pytest.raises(
        SystemExit, match=r"data of posteriordb are missing.*VILVM_DATA"
    ):
        infer.main(["mesquite-mesquite"])
    with pytest.raises(SystemExit, match="no posterior 'nine_schools'; choose from"):
        infer.main(["nine_schools"])


def test_infer_lists_every_scalar_or_says_how_many_more():
    problem, reference = infer.problem_of("radon")
    draws = {
        name: torch.full((10,), reference.mean(name)) for name in reference.scalars
    }
    shown = infer.table(draws, reference)
    assert shown.row_count == 41
    assert problem.name == "radon"
