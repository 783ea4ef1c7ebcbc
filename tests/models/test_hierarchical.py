"""The hierarchical posteriors, compared with densities written in numpy and with exact moments."""

import math

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from scipy.special import expit

import vilvm
from vilvm.data.tensors import tensors_of
from vilvm.guides import init_to_origin
from vilvm.models.eight_schools import EightSchools, eight_schools
from vilvm.models.hierarchical import names, posterior
from vilvm.models.hierarchical.simulation import Stream
from vilvm.weights import find_layout
from vilvm.weights._vectorisation import VECTORISED
from vilvm.weights.log_joint import LogJoint
from vilvm.wrappers import float64

NAMES = names()
NUTS = [name for name in NAMES if name != "funnel"]
SCALES = ("tau", "sigma", "sigma_a", "sigma_b", "sigma_y", "lam")


@pytest.fixture
def _float64():
    with float64():
        yield


def mean_field(problem):
    return vilvm.Pair(
        problem.model, AutoNormal(problem.model, init_loc_fn=init_to_origin)
    )


# Densities as the docstrings of the models state them; d are the arrays of the data
# --------------------------------------------------------------------------------------------


def log_normal(x, loc, scale):
    return stats.norm.logpdf(x, loc, scale).sum()


def centred_schools(d, p):
    y, sigma = d
    prior = stats.norm.logpdf(p["mu"], 0, 5) + stats.halfcauchy.logpdf(p["tau"], 0, 5)
    prior += log_normal(p["theta"], p["mu"], p["tau"])
    return prior + log_normal(y, p["theta"], sigma)


def noncentred_schools(d, p):
    theta = p["mu"] + p["tau"] * p["eta"]
    return centred_schools(d, {**p, "theta": theta}) + 8 * np.log(p["tau"])


def radon(d, p):
    county, floor, y = d
    uranium = posterior("radon").model.keywords["uranium"].numpy()
    total = sum(stats.norm.logpdf(p[n], 0, 10) for n in ("mu_a", "gamma", "mu_b"))
    for scale in ("sigma_a", "sigma_b", "sigma_y"):
        total += stats.halfnorm.logpdf(p[scale])
    for j in range(85):
        total += stats.norm.logpdf(
            p["a"][j], p["mu_a"] + p["gamma"] * uranium[j], p["sigma_a"]
        )
        total += stats.norm.logpdf(p["b"][j], p["mu_b"], p["sigma_b"])
        at = county == j
        total += log_normal(y[at], p["a"][j] + p["b"][j] * floor[at], p["sigma_y"])
    return total


def seeds(d, p):
    r, n, x1, x2 = d
    total = stats.uniform.logpdf(p["sigma"], 0, 10) + log_normal(p["b"], 0, p["sigma"])
    for name in ("alpha0", "alpha1", "alpha2", "alpha12"):
        total += stats.norm.logpdf(p[name], 0, 1000)
    mean = p["alpha0"] + p["alpha1"] * x1 + p["alpha2"] * x2
    mean = mean + p["alpha12"] * x1 * x2 + p["b"]
    return total + stats.binom.logpmf(r, n, expit(mean)).sum()


def irt(d, p):
    y = d[2].reshape(50, 20)
    total = stats.halfnorm.logpdf(p["sigma_a"], scale=0.5) + log_normal(
        p["theta"], 0, 1
    )
    total += stats.norm.logpdf(p["mu_b"], 0, 5)
    total += stats.halfcauchy.logpdf(p["sigma_b"], scale=2)
    total += stats.lognorm.logpdf(p["a"], p["sigma_a"]).sum()
    total += log_normal(p["b"], p["mu_b"], p["sigma_b"])
    right = expit(p["a"] * (p["theta"][:, None] - p["b"]))
    return total + np.log(np.where(y == 1, right, 1 - right)).sum()


def glmm(d, p):
    group, x, time, y = d
    total = stats.norm.logpdf(p["alpha"], 0, 5) + stats.norm.logpdf(p["beta"], 0, 2.5)
    total += stats.halfnorm.logpdf(p["sigma"]) + log_normal(p["u"], 0, p["sigma"])
    rate = time * np.exp(p["alpha"] + p["beta"] * x + p["u"][group])
    return total + stats.poisson.logpmf(y, rate).sum()


def horseshoe(d, p):
    x, y = d
    total = stats.norm.logpdf(p["alpha"], 0, 5) + stats.halfcauchy.logpdf(p["tau"])
    total += stats.halfcauchy.logpdf(p["lam"]).sum() + log_normal(p["z"], 0, 1)
    logits = p["alpha"] + x @ (p["tau"] * p["lam"] * p["z"])
    return total - np.logaddexp(0, np.where(y == 1, -logits, logits)).sum()


def funnel(d, p):
    return log_normal(p["v"], 0, 3) + log_normal(p["x"], 0, np.exp(p["v"] / 2))


DENSITIES = {
    "eight_schools_centred": centred_schools,
    "eight_schools_noncentred": noncentred_schools,
    "funnel": funnel,
    "horseshoe_logistic": horseshoe,
    "irt_2pl": irt,
    "poisson_glmm": glmm,
    "radon": radon,
    "seeds": seeds,
}


def points(problem, number=5):
    """Latents at some points, standard normal, or log-normal where they must be positive."""
    stream, found = Stream(1), []
    with torch.no_grad():
        shapes = {
            n: v.shape for n, v in mean_field(problem).guide(problem.data).items()
        }
    for _ in range(number):
        point = {n: 0.7 * stream.normal(*shape) for n, shape in shapes.items()}
        positive = {*SCALES, *(["a"] if problem.name == "irt_2pl" else [])}
        found.append({n: v.exp() if n in positive else v for n, v in point.items()})
    return found


def arrays(latents):
    return {n: v.numpy() for n, v in latents.items()}


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", NAMES)
def test_density_equals_the_stated_one(name):
    problem = posterior(name)
    data = [t.numpy() for t in tensors_of(problem.data)]
    found, expected = [], []
    for latents in points(problem):
        trace = poutine.trace(poutine.condition(problem.model, latents))
        found.append(trace.get_trace(problem.data).log_prob_sum().item())
        expected.append(DENSITIES[name](data, arrays(latents)))
    assert np.ptp(expected) > 0.1
    # up to one constant
    np.testing.assert_allclose(
        np.array(found) - found[0], np.array(expected) - expected[0], rtol=1e-8
    )


@pytest.mark.parametrize("name", NAMES)
def test_density_equals_that_of_the_numpyro_model(name):
    jax = pytest.importorskip("jax")
    pytest.importorskip("numpyro")
    from numpyro.infer.util import log_density

    from benchmarks.numpyro_models.hierarchical import MODELS

    model, arguments = MODELS[name]
    found, expected = [], []
    with float64(), jax.enable_x64(True):
        problem = posterior(name)
        for latents in points(problem):
            trace = poutine.trace(poutine.condition(problem.model, latents))
            found.append(trace.get_trace(problem.data).log_prob_sum().item())
            density, sites = log_density(model, (), arguments, arrays(latents))
            expected.append(density.item())
    assert set(latents) | set(problem.parameters) <= set(sites)
    np.testing.assert_allclose(
        np.array(found) - found[0], np.array(expected) - expected[0], rtol=1e-8
    )


# Many samples
# --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", NAMES)
def test_seven_samples_at_once_equal_seven_runs(name):
    problem = posterior(name)
    joint = LogJoint(mean_field(problem), problem.data)
    u = joint.draw(7)
    together = joint(u).target
    alone = torch.cat([joint(u[i : i + 1]).target for i in range(7)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert together.isfinite().all()
    strategies = joint.layout.vectorisation.strategies.values()
    assert {strategy.name for strategy in strategies} == {VECTORISED}


@pytest.mark.parametrize("name", NAMES)
def test_model_and_data_fit_in_float32(name):
    problem = posterior(name)
    lvm = mean_field(problem)
    assert find_layout(lvm, problem.data).num_data == len(vilvm.Data(problem.data))
    with torch.no_grad():
        latents = lvm.guide(problem.data)
    trace = poutine.trace(poutine.condition(problem.model, latents))
    trace = trace.get_trace(problem.data)
    trace.compute_log_prob()
    assert trace.log_prob_sum().isfinite()
    for site in trace.nodes.values():
        if "log_prob" in site:
            assert site["log_prob"].dtype in (torch.float32, torch.int64)


# References
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scalars_have_the_names_of_the_reference(name):
    problem, reference = posterior(name), posterior(name).reference()
    with torch.no_grad():
        nodes = poutine.trace(problem.model).get_trace(problem.data).nodes
    values = {n: nodes[n]["value"][None] for n in problem.parameters}
    scalars = problem.scalars(values)
    assert list(scalars) == list(reference.scalars)
    assert reference.name == name
    for scalar, row in reference.scalars.items():
        assert row.q5 < row.mean < row.q95
        assert reference.mean(scalar) == row.mean
        assert reference.sd(scalar) == row.sd > 0


@pytest.mark.parametrize("name", NUTS)
def test_references_have_converged(name):
    reference = posterior(name).reference()
    assert reference.method["chains"] * reference.method["draws"] >= 20_000
    assert reference.method["divergences"] == 0
    for row in reference.scalars.values():
        assert row.r_hat < 1.01
        assert min(row.ess_bulk, row.ess_tail) > 1000


@pytest.mark.parametrize("name", ["eight_schools_centred", "eight_schools_noncentred"])
def test_reference_of_eight_schools_equals_the_exact_moments(name):
    # |z| < 5 in each of 20 comparisons: false alarms in 1e-5. Var(sd) / sd² of ESS draws is
    # (kurtosis − 1) / (4 ESS), with the kurtosis taken as 9.
    exact = EightSchools().exact_moments(eight_schools().x)
    for scalar, row in posterior(name).reference().scalars.items():
        sd = exact.sd[scalar].item()
        z_mean = (row.mean - exact.mean[scalar].item()) / (sd / math.sqrt(row.ess_bulk))
        z_sd = (row.sd / sd - 1) / math.sqrt(2 / min(row.ess_bulk, row.ess_tail))
        assert abs(z_mean) < 5, (scalar, z_mean)
        assert abs(z_sd) < 5, (scalar, z_sd)


def test_reference_of_the_funnel_is_exact():
    row = posterior("funnel").reference().scalars["v"]
    assert (row.mean, row.sd) == (0, 3)
    np.testing.assert_allclose(
        (row.q5, row.q95), stats.norm(0, 3).ppf([0.05, 0.95]), 1e-5
    )


def test_both_forms_of_eight_schools_have_one_posterior():
    centred, noncentred = (posterior(n).reference().scalars for n in NAMES[:2])
    for scalar, a in centred.items():
        b = noncentred[scalar]
        error = math.sqrt(a.sd**2 / a.ess_bulk + b.sd**2 / b.ess_bulk)
        assert abs(a.mean - b.mean) < 5 * error, scalar


# Data
# --------------------------------------------------------------------------------------------


# Means of the data to which the references belong: of every tensor, by posterior
MEANS = {
    "eight_schools_centred": [8.75, 12.5],
    "eight_schools_noncentred": [8.75, 12.5],
    "funnel": [0.0],
    "horseshoe_logistic": [-0.00396722620966, 0.47],
    "irt_2pl": [24.5, 9.5, 0.488],
    "poisson_glmm": [50.612, 0.0163563246124, 2.1922928284, 3.634],
    "radon": [43.2187159956, 0.176278563656, 1.29568836252],
    "seeds": [20.1904761905, 39.5714285714, 0.47619047619, 0.52380952381],
}


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", NAMES)
def test_data_are_those_of_the_reference(name):
    found = [t.double().mean().item() for t in tensors_of(posterior(name).data)]
    np.testing.assert_allclose(found, MEANS[name], rtol=1e-9)


def test_stream_draws_the_stated_distributions():
    stream, size = Stream(3), 40_000
    u, rate = stream.uniform(size), torch.full((4000,), 2.5, dtype=torch.float64)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    # the seed is fixed, so that nothing here is random
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(stream.normal(size).numpy(), "norm").pvalue > 1e-4
    counts = stream.poisson(rate)
    assert abs(counts.mean().item() - 2.5) < 5 * math.sqrt(2.5 / 4000)
    assert abs(counts.var().item() - 2.5) < 5 * math.sqrt(2.5 * 6 / 4000)
    share = stream.categorical(p, size).bincount() / size
    assert (share - p).abs().max() < 5 * math.sqrt(0.25 / size)
    ones = stream.bernoulli(torch.full((size,), 0.3, dtype=torch.float64))
    assert abs(ones.mean().item() - 0.3) < 5 * math.sqrt(0.21 / size)


@pytest.mark.parametrize("name", ["radio", "", 3, ["radon"]])
def test_unknown_name_lists_the_known(name):
    with pytest.raises(ValueError, match=r"choose from .*radon"):
        posterior(name)


def test_every_density_is_tested():
    assert set(DENSITIES) == set(NAMES) == set(MEANS)
