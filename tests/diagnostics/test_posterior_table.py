"""The table of the posterior, and the user's names in it, in findings and in exports."""

import math
from dataclasses import replace
from importlib import import_module

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam

import vilvm
from tests.diagnostics.test_diagnose import Marked, linear
from vilvm.diagnostics import PosteriorTable, Scalar
from vilvm.diagnostics._coordinates import Coordinates, SiteDims
from vilvm.export import draws_to_datatree, to_datatree
from vilvm.models.ppca import PPCA
from vilvm.plots import forest, pairs

DIAGNOSE = import_module("vilvm.diagnostics.diagnose")
NAMES = ["Choate", "Deerfield", "Andover", "Exeter", "Hotchkiss"]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Only the diagnostics of the weights, which the table shows."""
    monkeypatch.setattr(
        DIAGNOSE,
        "_checks",
        lambda prepared, *_: DIAGNOSE._weight_checks(prepared, None),
    )


class Schools(torch.nn.Module):
    """y ~ N(θ, 1), θ ~ N(μ, 1), μ ~ N(0, 1); the guide is wrong for the third school."""

    def __init__(self, wrong=0.0):
        super().__init__()
        self.wrong = wrong

    def model(self, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("school", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)
        pyro.deterministic("twice", 2 * mu)

    def guide(self, y):
        precision = 1 + len(y) / 2
        mu = pyro.sample("mu", dist.Normal(y.sum() / 2 / precision, precision**-0.5))
        shift = torch.zeros(len(y)).index_fill(0, torch.tensor([2]), self.wrong)
        with pyro.plate("school", len(y)):
            pyro.sample("theta", dist.Normal((mu + y) / 2 + shift, 0.5**0.5))


def row_of(table, name):
    return {row.name: row for row in table.rows}[name]


def test_table_has_the_exact_moments():
    y = torch.tensor([2.0, 0.0, 1.0, -1.0, 3.0])
    table = vilvm.diagnose(Schools(), y, budget=120, progress=False).posterior
    assert [row.name for row in table.rows] == [
        "mu",
        *(f"theta[{i}]" for i in range(5)),
        "twice",
    ]
    mu, size = row_of(table, "mu"), len(table.draws)
    mean, sd = 2.5 / 3.5, 3.5**-0.5
    assert abs(mu.mean - mean) < 5 * sd / math.sqrt(size)
    assert abs(mu.sd / sd - 1) < 5 / math.sqrt(2 * size)
    error = 5 * math.sqrt(0.05 * 0.95 / size) * sd / 0.103  # φ(1.645) = 0.103
    assert abs(mu.high - (mean + 1.645 * sd)) < error
    assert abs(mu.low - (mean - 1.645 * sd)) < error
    assert row_of(table, "twice").sd == pytest.approx(2 * mu.sd)
    assert table.head == ("", "mean", "sd", "5 %", "95 %", "k̂")
    assert table.left_out == ""


def test_names_come_from_the_coordinates_of_the_export():
    y = torch.tensor([2.0, 0.0, 1.0, -1.0, 3.0])
    options = {"coords": {"school": NAMES}}
    found = vilvm.diagnose(Schools(3.0), y, budget=120, progress=False, **options)
    moments = found.results["Means and standard deviations"]
    assert "theta[Andover]" in moments.names
    assert "theta[Andover]" in moments.finding.verdict
    assert "theta[Andover]" in str(found.posterior)
    worst = found.posterior.rows[found.posterior.worst(1)[0]]
    assert worst.name == "theta[Andover]"
    tree = to_datatree(Schools(3.0), y, num_samples=50, **options)
    assert tree.posterior.theta.school.values.tolist() == NAMES
    draws = vilvm.posterior(Schools(), y, 200)
    given = vilvm.diagnose_draws(Schools(), y, draws, progress=False, **options)
    assert "theta[Andover]" in str(given.posterior)
    chains = {name: value[None] for name, value in draws.items()}
    exported = draws_to_datatree(chains, Schools(), y, **options)
    assert exported.posterior.theta.school.values.tolist() == NAMES


def test_data_have_the_users_names():
    lvm, x = linear(num_data=40)
    lvm.__class__ = Marked
    lvm.mark = x[7, 0].item()
    names = [f"site {i}" for i in range(40)]
    dims = {"z": ["factor"]}
    found = vilvm.diagnose(
        lvm,
        x,
        budget=120,
        coords={"data": names, "factor": ["a", "b", "c"]},
        dims=dims,
        progress=False,
    )
    assert "worst data: site 7" in found.results["Pareto k̂"].finding.verdict
    verdict = found.results["Means and standard deviations"].finding.verdict
    assert "of datum site 7" in verdict
    rows = [row.name for row in found.posterior.rows]
    assert "z[b] of site 7" in rows
    assert len(rows) == 39  # 13 data of three scalars
    assert "13 of 40 data" in found.posterior.left_out


@pytest.mark.parametrize(
    ("coords", "dims", "message"),
    [
        ({"schol": NAMES}, {}, r"coords has 'schol'.*\['school'\]"),
        ({"school": NAMES[:3]}, {}, "3 coordinates for dimension 'school', .* size 5"),
        ({}, {"theta": ["a", "b"]}, "has 0 dimensions besides draws and data"),
    ],
)
def test_coordinates_that_do_not_fit_are_refused(coords, dims, message):
    with pytest.raises(ValueError, match=message):
        vilvm.diagnose(Schools(), torch.zeros(5), budget=5, coords=coords, dims=dims)


def test_pairs_are_of_one_datum():
    rows = tuple(
        Scalar(f"z[{i}] of {d}", 0.0, 1.0, -1.6, 1.6, datum=d)
        for d in ("a", "b")
        for i in range(3)
    )
    badness = torch.tensor([0.1, 0.9, 0.1, 0.2, 0.1, 1.1])
    table = PosteriorTable(rows, torch.randn(50, 6).double(), badness, "draws")
    labels = [axes.get_xlabel() for axes in pairs(table).axes]
    assert [x for x in labels if x] == ["z[0] of b", "z[1] of b", "z[2] of b"]


def test_scalars_of_different_scales_have_axes_of_their_own():
    rows = [Scalar(n, 0.0, 1.0, -1.0, 1.0) for n in ("a", "b[0]", "b[1]")]
    draws = torch.randn(100, 3).double()
    table = PosteriorTable(tuple(rows), draws, torch.zeros(3), "draws")
    assert len(forest(table).axes) == 1
    scaled = replace(table, draws=draws * torch.tensor([1.0, 1e3, 1e3]))
    assert [len(axes.get_yticks()) for axes in forest(scaled).axes] == [1, 2]


def test_only_components_are_renamed():
    sites = {"theta": SiteDims((5,), 0), "w": SiteDims((2, 2))}
    coords = {"school": NAMES, "w_dim_1": ["x", "y"]}
    names = Coordinates.of("test", coords, None, sites, ("school", 5))
    assert names.renamed("theta[4]=2, w[0,1] and other[3]") == (
        "theta[Hotchkiss]=2, w[0,y] and other[3]"
    )


class Many(torch.nn.Module):
    """A thousand latents of single data beside a shared one."""

    def model(self, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    def guide(self, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 0.05))
        with pyro.plate("data", len(y)):
            pyro.sample("theta", dist.Normal((mu + y) / 2, 0.5**0.5))


def _few_checks(monkeypatch):
    monkeypatch.setattr(
        DIAGNOSE,
        "_checks",
        lambda prepared, *_: list(DIAGNOSE._weight_checks(prepared, None))[1:2],
    )


def test_values_of_enumerated_latents_are_left_out():
    """No draw of k is of its posterior, so the table would show the prior of the sign."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        probs = torch.tensor([0.5, 0.5])
        k = pyro.sample("k", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.deterministic("sign", 2.0 * k - 1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu + 10 * k, 1.0), obs=x)

    lvm = vilvm.Pair(model, AutoNormal(poutine.block(model, hide=["k", "sign"])))
    found = vilvm.diagnose(lvm, torch.randn(10) + 10, budget=5, progress=False)
    assert [row.name for row in found.posterior.rows] == ["mu"]


def test_many_latents_show_shared_and_worst(monkeypatch):
    _few_checks(monkeypatch)
    y = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    table = vilvm.diagnose(Many(), y, budget=120, progress=False).posterior
    names = [row.name for row in table.rows]
    assert names[0] == "mu"
    assert len(names) == 11
    assert table.left_out == (
        "Of 1,000 scalars of theta, it shows the 10 that look worst."
    )
    assert str(table).endswith(table.left_out)


def test_worst_of_given_draws_are_shown():
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(4, 500, 60, generator=generator)
    theta[0, :, 41] += 3  # one chain is elsewhere
    found = vilvm.diagnose_draws(
        draws={"theta": theta},
        log_joint=lambda z: -z["theta"].square().sum(1) / 2,
        chains=True,
        budget=120,
        progress=False,
    )
    table = found.posterior
    assert table.head[-2:] == ("R̂", "ESS")
    assert len(table.rows) == 40
    assert table.rows[table.worst(1)[0]].name == "theta[41]"
    assert "Of 60 scalars of theta, it shows the 40" in table.left_out


def test_latent_in_standard_units_has_the_users_name_and_unit(monkeypatch):
    _few_checks(monkeypatch)

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("school", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 10.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    own = poutine.reparam(model, {"theta": LocScaleReparam(0.0)})
    lvm = vilvm.Pair(own, AutoNormal(own, init_scale=0.01))
    found = vilvm.diagnose(
        lvm,
        torch.zeros(5),
        budget=120,
        coords={"school": NAMES},
        progress=False,
    )
    theta, mu = (row_of(found.posterior, n) for n in ("theta[Exeter]", "mu"))
    size = len(found.posterior.draws)
    assert abs(theta.mean - mu.mean) < 5 * 0.1 / math.sqrt(size)
    assert abs(theta.sd / 0.1005 - 1) < 5 / math.sqrt(2 * size)
    assert not any("decentered" in row.name for row in found.posterior.rows)


def test_broken_table_leaves_the_findings(monkeypatch):
    def broken(*_):
        raise RuntimeError("no draws today")

    monkeypatch.setattr(DIAGNOSE, "table_of_pair", broken)
    x = torch.randn(20, 4)
    found = vilvm.diagnose(PPCA(4, 1).maximise(x), x, budget=5, progress=False)
    assert found.posterior is None
    assert found.skipped["Posterior table"] == "RuntimeError: no draws today"
    assert found.findings
