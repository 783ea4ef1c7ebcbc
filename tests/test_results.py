"""Results print, show in a notebook and become frames, all with the same numbers."""

import html
import io
import re
from functools import cache
from html.parser import HTMLParser

import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch
from rich.console import Console

import vilvm
from vilvm import diagnostics as d
from vilvm._runtime.results import Result, frame_of, shown_text, table_of
from vilvm.diagnostics.collapse import Moments
from vilvm.diagnostics.gaps import Bound
from vilvm.diagnostics.gradient_snr import GroupSNR
from vilvm.evaluation import AISResult, BDMCResult, Estimate, Schedule
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.training.history import History


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def gaussian_weights():
    return vilvm.log_weights(VAE(6, 2), torch.zeros(4, 6), num_samples=3)


def fitted():
    torch.manual_seed(0)
    return vilvm.fit(VAE(6, 2), torch.rand(64, 6).round(), steps=150, compile=False)


def evaluation():
    x = torch.randn(20, 4)
    return vilvm.evaluate(PPCA(4, 2).maximise(x), x, num_samples=20)


def ledger():
    x = torch.randn(30, 4)
    models = {f"<{k}> & $x$ [b]": PPCA(4, k).maximise(x) for k in (1, 2)}
    return vilvm.compare(models, x, num_samples=10, num_draws=0)


def diagnosis():
    worse = d.Finding("Rate", d.Severity.WARNING, "The rate is <0 nats.", "KL ≥ 0")
    skipped = {"Convergence": "no history."}
    return vilvm.Diagnosis((worse,), {}, skipped, torch.arange(3), 0.0)


ONE = Estimate(torch.tensor([-1.0, -2.0]), torch.tensor([0.1, 0.2]))
TWO = torch.arange(2)
ONES = torch.ones(2)
NAMES = ("z[0]", "z[1]")
RANKS = torch.arange(100)[:, None].repeat(1, 2) % 10
EXACT = {"exact": Bound(ONE, torch.full((2,), torch.inf))}
MOMENTS = Moments(ONES, ONES, ONES, ONES)
RESULTS = {
    "AISResult": lambda: AISResult(ONE, ONES * 9, ONES, Schedule(), {}, 1.0),
    "BDMCResult": lambda: BDMCResult(ONE, ONE, ONES * 9, Schedule(), 1.0),
    "Chains": lambda: d.chains(torch.randn(4, 500, 2)),
    "Collapse": lambda: d.Collapse(
        {"z": ONES},
        0.01,
        {"z": ONES},
        {"z": ONES},
        ONE,
        ONE,
        ONE,
        ONE,
        {"z": MOMENTS},
        9,
    ),
    "Convergence": lambda: d.convergence(result_of("Fit")),
    "Correction": lambda: d.correction(
        PPCA(4, 1).maximise(torch.randn(9, 4)), torch.randn(9, 4)
    ),
    "Diagnosis": diagnosis,
    "Evaluation": evaluation,
    "Finding": lambda: d.Finding("Rate", d.Severity.OK, "2 < 3 nats.", "KL ≥ 0"),
    "Fit": fitted,
    "Gaps": lambda: d.Gaps(EXACT, ONE, ONE, TWO),
    "GradientSNR": lambda: d.GradientSNR(
        {"ELBO": {"decoder": GroupSNR(1.0, 0.1, 0.2, 0.01, 9)}}, 9, False, 0.01
    ),
    "History": lambda: result_of("Fit").history,
    "LOO": lambda: d.LOO(-3.0, 0.5, 1.0, ONES, 0.1 * ONES, 0.1, 1000),
    "Ledger": ledger,
    "LogWeights": gaussian_weights,
    "ParetoK": lambda: d.ParetoK(ONES / 4, ONES * 9, TWO, 1000, False),
    "Posterior": lambda: vilvm.infer(normal, torch.randn(5), budget=5, progress=False),
    "PosteriorTable": lambda: d.PosteriorTable(
        (d.Scalar("mu", 1.5, 0.5, 0.5, 2.5),), ONES[:, None], ONES[:1], "draws"
    ),
    "PredictiveCheck": lambda: d.PredictiveCheck(
        {"mean": ONES}, {"mean": torch.randn(50, 2)}, "posterior"
    ),
    "Rates": lambda: d.Rates(ONE, TWO),
    "SBC": lambda: d.SBC(RANKS, 9, NAMES, ONES, 0.01),
    "Stein": lambda: d.stein(
        torch.randn(500, 2).double(), torch.randn(500, 2).double()
    ),
    "TARP": lambda: d.TARP(RANKS[:, 0], 9, 1.0, 0.01),
    "VSBC": lambda: d.VSBC(RANKS, 9, NAMES, ONES, ONES, 0.01),
    "WeightedEvidence": lambda: d.weighted_evidence(torch.randn(50)),
}


class Reader(HTMLParser):
    """Reads the text of a page, and checks that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        assert not {"src", "href"} & dict(attributes).keys()
        assert tag in {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " "

    def handle_data(self, data):
        self.text += data


def words(text):
    return text.replace("─", "").split()


def subclasses(cls):
    return {cls, *(c for sub in cls.__subclasses__() for c in subclasses(sub))}


def test_every_result_is_tested():
    assert {c.__name__ for c in subclasses(Result)} - {"Result"} == set(RESULTS)


@cache
def result_of(name):
    torch.manual_seed(0)
    return RESULTS[name]()


@pytest.mark.parametrize("name", RESULTS)
def test_notebook_and_terminal_show_the_same(name):
    result = result_of(name)
    reader, page = Reader(), io.StringIO()
    reader.feed(result._repr_html_())
    assert not reader.open
    Console(file=page, width=10_000, color_system=None).print(result)
    assert words(reader.text) == words(page.getvalue())
    # a wide table is cut, and repeats its first column
    assert set(words(str(result))) == set(words(page.getvalue()))


@pytest.mark.parametrize("name", RESULTS)
def test_repr_is_one_short_line(name):
    text = repr(result_of(name))
    assert text.startswith(f"{name}(")
    assert len(text) < 200
    assert "tensor" not in text


@pytest.mark.parametrize("name", RESULTS)
def test_frame_has_scalar_columns(name):
    frame = result_of(name).to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert all(pandas.api.types.is_scalar(cell) for cell in frame.to_numpy().ravel())
    assert re.fullmatch(r"(\w| )+", " ".join(frame.columns))


def test_html_has_no_markup_of_names_and_no_formulas():
    text = result_of("Ledger")._repr_html_()
    assert html.escape("<1> & $x$ [b]") in text
    assert "<1>" not in text
    assert "mathjax_ignore" in text


def test_frames_have_the_numbers_of_the_results():
    found = result_of("Evaluation")
    frame = found.to_frame().set_index("quantity")
    assert frame.loc["iwae", "mean"] == found.bounds["iwae"].mean
    assert frame.loc["rate", "mc_se"] == found.rate.mc_se
    rows = found.to_frame(per_datum=True)
    assert torch.equal(
        torch.tensor(rows["elbo"].to_numpy()), found.bounds["elbo"].values
    )
    weights = gaussian_weights()
    rows = weights.to_frame().set_index(["sample", "datum"])
    row = rows.loc[(2, 1)]
    assert row["log_weight"] == pytest.approx(weights.log_weight[2, 1].item())
    parts = row["log_likelihood"] + row["log_prior"] - row["log_guide"]
    assert parts == pytest.approx(row["log_weight"], rel=1e-5)


def test_weights_of_shared_latents_make_a_row_a_sample():
    lvm = vilvm.Pair(normal, lambda y: pyro.sample("mu", dist.Normal(0.0, 1.0)))
    weights = vilvm.log_weights(lvm, torch.randn(5), num_samples=3)
    frame = weights.to_frame()
    assert len(frame) == 3
    total = frame["log_likelihood"] + frame["log_prior"] - frame["log_guide"]
    assert total.to_numpy() == pytest.approx(frame["log_weight"].to_numpy(), rel=1e-5)


def test_units_of_a_joint_divergence_have_a_row_of_their_own():
    found = d.Collapse(
        {"z": ONES}, 0.01, {"z": torch.tensor(3.0)}, {"z": torch.tensor(0.1)},
        ONE, None, None, None, {"z": MOMENTS}, 9,
    )  # fmt: skip
    frame = found.to_frame().set_index("unit")
    assert list(frame.index) == ["z[0]", "z[1]", "z"]
    assert frame.loc["z", "kl"] == 3.0
    assert frame.loc[["z[0]", "z[1]"], "kl"].isna().all()


def test_long_frames_are_cut_with_a_sentence():
    text = shown_text(table_of(frame_of({"datum": range(500)})))
    assert "… and 480 more rows, see to_frame()." in text
    assert len(text.splitlines()) < 30


def test_results_of_nothing_print():
    assert "epoch" in str(History())
    assert str(vilvm.Ledger(())) == ""
