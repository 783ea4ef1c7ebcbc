"""The posterior in one call: draws, names, reports, budget and seeds."""

import math
import sys
import time
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy import stats

import vilvm
from tests.inference.exact import curved, exact_mean, mean_model, mixture, mixture_data
from vilvm.diagnostics.finding import Severity
from vilvm.inference import Summary, refine
from vilvm.inference._verdict import _refinement

Y = torch.tensor([0.5, 1.5, 3.0])
QUIET = {"progress": False}


def gamma(y):
    """Posterior Gamma(2 + Σ y, 1 + n)."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def local(y):
    """A latent for every datum beside a global one: given μ the data are N(μ, 2)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def heavy(y):
    """Logistic regression on 40 latents with a hierarchical scale, and 4,000 data."""
    x = torch.linspace(-1, 1, 40, dtype=y.dtype) * torch.arange(len(y))[:, None].cos()
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    lam = pyro.sample("lam", dist.HalfCauchy(torch.ones(40)).to_event(1))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(40), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        logits = (x * (tau[..., None] * lam * beta)).sum(-1)
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


@pytest.fixture(scope="module")
def found():
    return vilvm.infer(mean_model, Y, **QUIET)


def test_conjugate_mean_and_evidence_are_exact(found):
    exact = exact_mean(Y)
    row = found.summary()["mu"]
    sd = exact.covariance.sqrt().item()
    assert (
        abs(row.mean - exact.mean.item()) < 5 * sd / row.ess**0.5
    )  # once in 1.7 million
    assert abs(found.log_evidence.mean - exact.log_evidence) < 1e-6
    assert found.log_evidence.mc_se < 1e-6
    assert "Heavy tails" not in [f.name for f in found.findings]
    assert (found.rung, found.chains, found.modes) == (
        "weights",
        1,
        pytest.approx((1.0,)),
    )


def test_posterior_of_a_rate_is_its_gamma():
    y = torch.tensor([1.0, 0.0, 2.0])
    found = vilvm.infer(gamma, y, **QUIET)
    assert found.trusted
    exact = stats.gamma(5.0, scale=1 / 4.0)
    row, draws = found.summary()["rate"], found.draws["rate"]
    n = row.ess
    assert (
        abs(row.mean - 5 / 4) < 5 * (5 / 16 / n) ** 0.5
    )  # fails once in 1.7 million runs
    for q in (0.1, 0.5, 0.9):
        below = (draws.double() < exact.ppf(q)).double().mean().item()
        assert abs(below - q) < 5 * (q * (1 - q) / n) ** 0.5
    # Γ(5) / 4⁵ over Π y_i!
    evidence = math.log(24 / 4**5 / 2)
    z = (found.log_evidence.mean - evidence) / found.log_evidence.mc_se
    assert abs(z) < 5


def test_standard_deviation_that_extreme_draws_decide_is_noted():
    """log odds ~ N(0, 1.5): the fourth moment is e^18 times the square of the second."""

    def model(y):
        log_odds = pyro.sample("log_odds", dist.Normal(0.0, 1.5))
        pyro.deterministic("odds", log_odds.exp())
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0 * log_odds, 1.0), obs=y)

    found = vilvm.infer(model, Y, **QUIET)
    (note,) = (f for f in found.findings if f.name == "Heavy tails")
    assert note.verdict.startswith(
        "Few extreme draws decide the standard deviation of odds: k̂ of the squared"
    )
    assert found.trusted


def test_local_latents_beside_global_ones():
    found = vilvm.infer(local, Y, **QUIET)
    assert found.trusted
    assert found.draws["z"].shape == (len(found.draws["mu"]), 3)
    # μ | y is N(Σ y / (n + 2), 2 / (n + 2)); z_i | μ, y is N((y_i + μ) / 2, 1 / 2)
    mean, variance = Y.sum().item() / 5, 2 / 5
    rows = found.summary()
    n = rows["mu"].ess
    assert abs(rows["mu"].mean - mean) < 5 * (variance / n) ** 0.5
    for i, y in enumerate(Y.tolist()):
        row, spread = rows[f"z[{i}]"], (0.5 + variance / 4) / n
        assert abs(row.mean - (y + mean) / 2) < 5 * spread**0.5


@pytest.mark.slow
def test_enumerated_latents_are_summed_over():
    found = vilvm.infer(mixture, mixture_data(), **QUIET)
    assert set(found.draws) == {"weight", "loc"}
    assert (found.draws["weight"].sum(-1) - 1).abs().max() < 1e-9
    low, high = found.draws["loc"].sort(-1)[0].mean(0).tolist()
    # given its four data each mean is N(Σ y / 4.04, 1 / 4.04), labels apart
    for value, exact in ((low, -12.0 / 4.04), (high, 12.0 / 4.04)):
        assert abs(value - exact) < 5 * (1 / 4.04 / found.ess) ** 0.5 + 1e-3


def test_guide_of_a_pair_is_ignored(found):
    lvm = vilvm.Pair(mean_model, AutoNormal(mean_model))
    again = vilvm.infer(lvm, Y, **QUIET)
    assert torch.equal(again.draws["mu"], found.draws["mu"])


def test_same_seed_gives_same_draws(found):
    torch.manual_seed(17)
    state = torch.random.get_rng_state()
    again = vilvm.infer(mean_model, Y, **QUIET)
    other = vilvm.infer(mean_model, Y, seed=1, **QUIET)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(again.draws["mu"], found.draws["mu"])
    assert not torch.equal(other.draws["mu"], found.draws["mu"])


def test_posterior_prints_verdict_and_table(found):
    text = str(found)
    lines = text.splitlines()
    assert lines[0] == "Nothing speaks against these draws." == found.verdict
    assert lines[2].split() == ["mean", "sd", "5", "%", "95", "%", "MCSE", "k̂", "ESS"]
    assert lines[4].split()[0] == "mu"
    assert len(lines[4].split()) == 8
    assert "[OK] Pareto k̂" in lines[-1]
    assert next(rung.name for rung in found.history) == "paths"
    assert isinstance(found.summary()["mu"], Summary)
    assert found.gradients > 0
    assert found.densities > 0
    assert found.seconds > 0


def test_guide_goes_into_every_verb(found):
    data = found.data
    evaluation = vilvm.evaluate(found.lvm, data, num_samples=200, progress=False)
    exact = exact_mean(Y).log_evidence
    # the guide is the posterior, so that every weight is the evidence
    assert evaluation.bounds["elbo"].mean == pytest.approx(exact, abs=1e-6)
    means = vilvm.predict(found.lvm, {"mu": found.draws["mu"][0]}, like=data)
    assert torch.allclose(means["y"], found.draws["mu"][0].expand(3))
    ledger = vilvm.compare({"infer": found.lvm}, data, num_samples=100, progress=False)
    assert "infer" in str(ledger)
    assert vilvm.posterior(found.lvm, data, 4)["mu"].shape == (4,)


@pytest.mark.slow
def test_guide_goes_into_diagnose_and_arviz(found):
    pytest.importorskip("arviz_base")
    from vilvm.export import to_datatree

    diagnosis = vilvm.diagnose(found.lvm, found.data, budget=10, progress=False)
    assert "No diagnostic found evidence against" in str(diagnosis)
    tree = to_datatree(found.lvm, found.data, num_samples=50)
    assert tree.posterior["mu"].shape == (1, 50)
    own = found.to_datatree()
    assert own.posterior["mu"].shape == (1, len(found.draws["mu"]))


@pytest.mark.slow
def test_chains_are_ordered_and_depend_on_the_seed_alone(monkeypatch):
    # chains are not compiled, which takes longer than they do
    monkeypatch.setattr(sys.modules[refine.__module__], "LEAST_TO_COMPILE", math.inf)
    found, again = (refine(skewed, Y[:2], **QUIET) for _ in range(2))
    assert found.trusted  # so that no budget ended
    assert torch.equal(found.draws["scale"], again.draws["scale"])
    assert found.rung == "chains"
    assert found.chains > 1
    draws = found.draws["scale"].unflatten(0, (found.chains, -1))
    # a rejected transition repeats a draw of its own chain, and of no other
    assert (draws[:, 1:] == draws[:, :-1]).float().mean() > 0.01
    assert (draws[1:] == draws[:-1]).float().mean() == 0
    text = str(found)
    assert "R̂" in text
    assert all(row.r_hat > 0 for row in found.summary().values())


def skewed(y):
    """A scale given two data."""
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


def heavy_tailed(y):
    """A funnel without data worth the name, whose weights are bad."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    x = pyro.sample(
        "x", dist.StudentT(1.0, torch.zeros(6), (v / 2).exp()[..., None]).to_event(1)
    )
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.StudentT(1.0, x.sum(-1, keepdim=True), 1.0), obs=y)


@pytest.mark.parametrize("converged", [True, False])
def test_refinement_by_chains_that_have_not_converged_is_no_truth(converged):
    u = torch.randn(100, 2).double()
    before = SimpleNamespace(k=0.9, u=u)
    finding = _refinement(before, u + 1, torch.full((100,), 0.01).double(), converged)
    assert (finding.severity == Severity.OK) == converged
    assert ("have not converged" in finding.verdict) != converged


@pytest.mark.slow
def test_without_refinement_no_chains_run():
    found = vilvm.infer(
        heavy_tailed, torch.tensor([3.0, -3.0]), refine=False, budget=30, **QUIET
    )
    assert found.rung == "weights"
    assert found.chains == 1
    assert not any("chains" in rung.name for rung in found.history)
    if found.k > 0.7:
        assert not found.trusted
        assert "Do not trust these draws" in found.verdict
        assert "Allow refinement" in str(found)


@pytest.mark.slow
def test_small_budget_is_kept_and_said():
    y = (torch.arange(4000) % 3 == 0).float()
    began = time.monotonic()
    try:
        said = str(vilvm.infer(heavy, y, budget=1.0, **QUIET))
    except vilvm.ContractError as error:
        said = str(error)
    took = time.monotonic() - began
    assert took < 60  # one Newton step in 81 dimensions, draws and a busy machine
    assert "budget" in said


@pytest.mark.slow
def test_gaussian_guides_have_no_skewed_margins():
    found = vilvm.infer(
        curved, torch.tensor([1.0, 4.0]), guides="gaussian", refine=False, **QUIET
    )
    assert not any("skew" in rung.name for rung in found.history)
