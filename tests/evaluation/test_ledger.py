"""The ledger: numbers equal their sources, errors are paired, unlike rows are not ranked."""

import csv
import io
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from rich.console import Console

import vilvm
from vilvm.data import DynamicBinarisation
from vilvm.data.datasets import digits
from vilvm.evaluation import (
    Ledger,
    Schedule,
    ais,
    compare,
    fit_features,
    squared_error,
)
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.linear_autoencoder import LinearAutoencoder
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.networks import mlp
from vilvm.priors import fit_prior
from vilvm.wrappers import with_guide, with_prior

quick = partial(compare, num_samples=50, num_draws=0)


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, 2, generator=generator) @ (
        3 * torch.randn(2, 6, generator=generator)
    ) + torch.randn(200, 6, generator=generator)


@pytest.fixture(scope="module")
def models(x):
    return {
        "one": PPCA(6, 1).maximise(x),
        "two": PPCA(6, 2).maximise(x),
        "linear": LinearAutoencoder(6, 2),
    }


@pytest.fixture(scope="module")
def ledger(models, x):
    data = vilvm.Data(x, "plane", "test")
    return compare(models, data, num_samples=50, num_draws=100, seconds={"one": 1.25})


def test_row_equals_its_sources(ledger, models, x):
    row = ledger["two"]
    assert torch.equal(
        row.evaluation.bounds["iwae"].values,
        vilvm.evaluate(models["two"], x, num_samples=50).bounds["iwae"].values,
    )
    assert row.sse is not None
    assert torch.equal(row.sse.values, squared_error(models["two"], x).values)
    assert row.parameters == 6 * 2 + 6 + 1 + 2 * 6 + 2
    assert row.two_sample is not None
    assert row.two_sample.num_draws == 100
    assert (row.seconds, ledger["one"].seconds) == (None, 1.25)
    assert row.frechet is None


def test_better_model_is_first_by_exact_difference(ledger, models, x):
    assert ledger.rank(ledger["one"].protocol) == ["two", "one"]
    found = ledger.difference("two", "one")
    truth = models["two"].exact_log_evidence(x) - models["one"].exact_log_evidence(x)
    # At maximum likelihood the guide is exact, so that every bound is the evidence itself.
    assert found.mean == pytest.approx(truth.mean().item(), rel=1e-3)
    assert found.se == pytest.approx(truth.std().item() / 200**0.5, rel=1e-2)
    single = ledger["two"].evaluation.bounds["iwae"].se
    # The standard error is paired.
    assert found.se != pytest.approx(
        (single**2 + ledger["one"].evaluation.bounds["iwae"].se ** 2) ** 0.5, rel=0.05
    )
    back = ledger.difference("one", "two")
    assert (back.mean, back.se) == (-found.mean, found.se)


def test_models_without_bound_form_another_group(ledger):
    assert [[row.name for row in rows] for rows in ledger.groups().values()] == [
        ["two", "one"],
        ["linear"],
    ]
    with pytest.raises(
        ValueError,
        match=r"'one' and 'linear' cannot be ranked against each other: they differ in bound "
        r"\(iwae / none\)",
    ):
        ledger.rank()
    with pytest.raises(
        ValueError,
        match="'linear' cannot be ranked, because it has no bound: LinearAutoencoder: the guide "
        "puts latent 'z'",
    ):
        ledger.rank(ledger["linear"].protocol)
    assert any(
        note.startswith("linear: no draws: The model has a flat prior")
        for note in ledger.notes
    )


@pytest.mark.parametrize(
    ("other", "differ"),
    [
        (
            lambda m, x: quick({"b": m["two"]}, vilvm.Data(x, "plane", "train")),
            r"split \(all / train\)|split \(test / train\)",
        ),
        (
            lambda m, x: quick({"b": m["two"]}, vilvm.Data(x[:100], "plane", "test")),
            r"num_data \(200 / 100\)",
        ),
        (
            lambda m, x: quick({"b": m["two"]}, vilvm.Data(x.flip(0), "plane", "test")),
            r"contents \(",
        ),
        (
            lambda m, x: compare(
                {"b": m["two"]},
                vilvm.Data(x, "plane", "test"),
                num_samples=60,
                num_draws=0,
            ),
            r"num_samples \(50 / 60\)",
        ),
        (
            lambda m, x: quick(
                {"b": VAE(6, 2)},
                vilvm.Data(x.sigmoid(), "plane", "test", DynamicBinarisation()),
            ),
            r"likelihood \(x ~ Normal / x",
        ),
    ],
)
def test_unlike_rows_are_not_ranked(ledger, models, x, other, differ):
    both = ledger + other(models, x)
    assert len(both.groups()) == 3
    for ask in (
        both.rank,
        lambda: both.difference("two", "b"),
        lambda: Ledger((both["one"], both["b"])).rank(),
    ):
        with pytest.raises(ValueError, match="cannot be ranked"):
            ask()
    with pytest.raises(ValueError, match=differ):
        both.difference("two", "b")


def test_like_rows_are_ranked_across_ledgers(ledger, models, x):
    both = Ledger((ledger["one"],)) + quick(
        {"again": models["two"]}, vilvm.Data(x, "plane", "test")
    )
    assert both.rank() == ["again", "one"]


def test_a_transform_is_drawn_once_for_all():
    x = torch.rand(40, 6)
    lvm = VAE(6, 2)
    both = quick(
        {"a": lvm, "b": lvm}, vilvm.Data(x, transform=DynamicBinarisation()), seed=3
    )
    assert both.difference("a", "b") == (0, 0)


@pytest.mark.slow
def test_comparison_follows_seed_and_restores_generators(models, x):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    first = compare(models, x, num_samples=5, num_draws=30)
    assert torch.equal(torch.rand(3), expected)
    second = compare({"two": models["two"]}, x, num_samples=5, num_draws=30)
    assert (
        second["two"].two_sample == first["two"].two_sample
    )  # independent of other rows
    assert torch.equal(
        second["two"].evaluation.bounds["iwae"].values,
        first["two"].evaluation.bounds["iwae"].values,
    )


def test_draws_that_are_not_finite_are_noted(x):
    class Wild(PPCA):
        def model(self, batch):
            with pyro.plate("data", len(batch)):
                z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
                pyro.sample(
                    "x", dist.LogNormal(z @ self.W.T + 100, 30.0).to_event(1), obs=batch
                )

    found = compare({"wild": Wild(6, 2)}, x.abs() + 1, num_samples=5, num_draws=60)
    assert found["wild"].two_sample is None
    assert found.notes == ["wild: no two-sample test: some draws are not finite."]


def test_too_few_draws_are_noted(models, x):
    assert compare({"two": models["two"]}, x, num_samples=5, num_draws=3).notes == [
        "two: no two-sample test: it needs 5 draws, and 5 held-out data in one tensor."
    ]


def test_parameters_are_those_in_use(x):
    auto = LinearAutoencoder(6, 2)
    prior = fit_prior(auto, x, "full")
    lvm = with_guide(with_prior(auto, prior), mlp(6, (), 4))
    found = quick({"linear": auto, "generative": lvm}, x)
    assert found["linear"].parameters == 6 * 2 + 6
    assert found["generative"].parameters == 6 * 2 + 6 + (2 + 2 * 2) + (6 * 4 + 4)
    deep = Autoencoder(6, 2, hidden=(8,))
    lvm = with_guide(with_prior(deep, fit_prior(deep, x, "diagonal")), mlp(6, (), 4))
    decoder = sum(p.numel() for p in deep.decoder.parameters())
    # The encoder is no longer used.
    assert quick({"deep": lvm}, x)["deep"].parameters == decoder + 2 * 2 + (6 * 4 + 4)
    assert all(p.requires_grad for p in deep.parameters())
    assert all(p.grad is None for p in deep.parameters())


@pytest.mark.slow
def test_draws_are_compared_with_held_out_data():
    data = digits(transform=None)
    features = fit_features(data.train, hidden=(32, 8))
    good, bad = (
        PPCA(64, 20).maximise(data.train.x),
        PPCA(64, 20).maximise(data.train.x * 0.2),
    )
    found = compare(
        {"good": good, "bad": bad},
        data.test,
        num_samples=5,
        held_out=data.validation,
        num_draws=150,
        features=features,
    )
    assert found["good"].two_sample.accuracy < found["bad"].two_sample.accuracy
    assert found["good"].frechet < found["bad"].frechet


def test_ledger_prints_and_writes_tables(ledger, tmp_path):
    console = Console(width=200, file=io.StringIO())
    console.print(ledger)
    text = console.file.getvalue()
    assert (
        "x ~ Normal · plane test, 200 data, as they are · IWAE-50, nats per datum"
        in text
    )
    assert text.index("two") < text.index("one")
    assert "cannot be ranked against each other" in text
    lines = ledger.to_markdown().splitlines()
    assert lines[2].startswith("| model | IWAE-50 | behind the best | ELBO |")
    assert lines[4].startswith(
        f"| two | {ledger['two'].evaluation.bounds['iwae'].mean:.2f} ± "
    )
    assert "| 33 |" in lines[4]
    assert {line.count("|") for line in lines[2:6]} == {lines[2].count("|")}
    ledger.to_csv(tmp_path / "ledger.csv")
    with (tmp_path / "ledger.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert float(rows["two"]["iwae"]) == pytest.approx(
        ledger["two"].evaluation.bounds["iwae"].mean
    )
    assert float(rows["one"]["behind_best"]) == pytest.approx(
        ledger.difference("two", "one").mean
    )
    assert rows["linear"]["iwae"] == ""
    assert rows["linear"]["group"] != rows["one"]["group"] == rows["two"]["group"]
    frame = ledger.to_frame()
    assert list(frame["model"]) == ["two", "one", "linear"]


def test_annealed_bounds_stand_beside_the_others(models, x):
    few, schedule = x[:10], Schedule(num_chains=8, num_temperatures=4, leapfrog=1)
    ledger = quick(models, few, ais=schedule)
    row = ledger["two"]
    assert row.ais is not None
    assert torch.equal(row.ais.values, ais(models["two"], few, schedule).bound.values)
    assert "| AIS |" in ledger.to_markdown()
    assert ledger["linear"].ais is None
    assert any(note.startswith("no AIS: ") for note in ledger["linear"].notes)


def test_annealed_bounds_of_few_chains_are_noted(models, x):
    schedule = Schedule(num_chains=4, num_temperatures=2, leapfrog=1)
    (note,) = quick({"two": models["two"]}, x[:10], ais=schedule)["two"].notes
    assert "fewer than 5 effective chains for 10 of 10 data" in note


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_fit_the_terminal(ledger, models, x, width):
    console = Console(width=width, file=io.StringIO())
    long = quick(
        {f"{name} of quite a long name": lvm for name, lvm in models.items()}, 100 * x
    )
    console.print(ledger + long)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    assert (
        sum(
            ("model" in line and "train" in line) or "two-sample" in line
            for line in lines
        )
        >= 1
    )


def test_names_are_not_markup(models, x):
    console = Console(width=120, file=io.StringIO())
    console.print(quick({"[bold]": models["one"]}, x))
    assert "[bold]" in console.file.getvalue()


def test_model_with_shared_latent_has_one_row():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(x.sum() / (len(x) + 1), (len(x) + 1) ** -0.5))

    found = quick({"mean": vilvm.Pair(model, guide)}, torch.randn(20))
    assert found["mean"].protocol.unit == "nats, all data together"
    assert found["mean"].evaluation.bounds["iwae"].mc_se < 1e-5
    assert len(found["mean"].evaluation.bounds["iwae"].values) == 1


def test_invalid_arguments_are_refused(models, x):
    with pytest.raises(ValueError, match="no models"):
        compare({}, x)
    with pytest.raises(ValueError, match="seconds of 'three' are given"):
        compare(models, x, seconds={"three": 1.0})
    with pytest.raises(
        ValueError, match="num_draws must be a whole number, at least 0"
    ):
        compare(models, x, num_draws=-1)
    with pytest.raises(ValueError, match="compare: ais: schedule must be"):
        compare(models, x, ais=16)
    with pytest.raises(vilvm.ContractError, match=r"compare: wide: .*fails on a batch"):
        quick({"wide": PPCA(7, 2)}, x)
    both = quick({"one": models["one"]}, x)
    with pytest.raises(ValueError, match="'one' appears twice"):
        both + both
    with pytest.raises(KeyError, match=r"No row 'four'; there are \['one'\]"):
        both["four"]


def test_exact_evidence_is_reported_beside_bounds():
    x = torch.randn(60, 4)
    ledger = compare({"known": PPCA(4, 2).maximise(x)}, x, num_samples=20, num_draws=0)
    assert "| exact |" in ledger.to_markdown()
    assert ledger.to_frame()["exact"][0] == pytest.approx(
        PPCA(4, 2).maximise(x).exact_log_evidence(x).mean().item(), abs=1e-5
    )


def test_settings_of_a_sweep_name_the_rows():
    x = torch.randn(40, 4)
    models = {(d, 1e-3): PPCA(4, d).maximise(x) for d in (1, 3)}
    ledger = compare(
        models, x, num_samples=10, num_draws=0, seconds={(1, 1e-3): 2.0}, progress=False
    )
    assert ledger.rank() == ["3, 0.001", "1, 0.001"]
    assert ledger["1, 0.001"].seconds == 2.0
    assert ledger.to_frame()["model"].tolist() == ["3, 0.001", "1, 0.001"]
    title, *lines = str(ledger).splitlines()
    assert "nats per datum" in title
    head, _, best, other = [line.split() for line in lines if line][:4]
    assert head[:2] == ["model", "IWAE-10"]
    assert (best[:2], other[:2]) == (["3,", "0.001"], ["1,", "0.001"])
    assert "\x1b" not in str(ledger)
    numbers = {d: PPCA(4, d).maximise(x) for d in (1, 2)}
    assert compare(numbers, x, num_samples=10, num_draws=0).rank() == ["2", "1"]
