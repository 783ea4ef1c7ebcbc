"""The models of posteriordb, compared with densities written in numpy and with long Stan runs."""

import math

import numpy as np
import pyro
import pytest
import torch
from arviz_stats.base import array_stats
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.util import site_is_subsample
from scipy import stats
from torch.distributions import biject_to

import vilvm
from tests.models.exact import posteriordb_or_skip
from vilvm.guides import init_to_origin
from vilvm.models.posteriordb import Problem, names, posterior
from vilvm.models.posteriordb.time_series import moving_average_errors
from vilvm.weights import find_layout
from vilvm.weights._vectorisation import VECTORISED
from vilvm.weights.generated_quantities import replay
from vilvm.weights.log_joint import LogJoint
from vilvm.wrappers import float64

NAMES = names()


@pytest.fixture
def _float64():
    with float64():
        yield


def posterior_or_skip(name):
    return posteriordb_or_skip(name, posterior)


# Densities as the README of the data states them, for arrays of shape (draws, *event)
# --------------------------------------------------------------------------------------------


def log_normal(x, loc, scale):
    """The sum over all dimensions but the first, that of the draws."""
    density = stats.norm.logpdf(x, loc, scale)
    return density.reshape(len(density), -1).sum(1)


def log_likelihood(y, mean, sigma):
    return log_normal(y, mean, sigma[:, None])


def log_regression(y, p, *covariates):
    columns = [np.ones_like(y), *covariates]
    mean = sum(p["beta"][:, [k]] * column for k, column in enumerate(columns))
    return log_likelihood(y, mean, p["sigma"])


def kidiq(*covariates):
    def density(d, p):
        prior = stats.halfcauchy.logpdf(p["sigma"], scale=2.5)
        return prior + log_regression(d["kid_score"], p, *(d[c] for c in covariates))

    return density


def mom_work(d, p):
    levels = [(d["mom_work"] == k) * 1.0 for k in (2, 3, 4)]
    return log_regression(d["kid_score"], p, *levels)


def mesquite(d, p):
    shape = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    return log_regression(d["weight"], p, *(d[c] for c in shape))


def log_mesquite(d, p):
    shape = ("diam1", "diam2", "canopy_height", "total_height", "density")
    return log_regression(
        np.log(d["weight"]), p, *(np.log(d[c]) for c in shape), d["group"]
    )


def nes(d, p):
    ages = [(d["age_discrete"] == k) * 1.0 for k in (2, 3, 4)]
    rest = (d["educ1"], d["gender"], d["income"])
    return log_regression(d["partyid7"], p, d["real_ideo"], d["race_adj"], *ages, *rest)


def blr(d, p):
    prior = log_normal(p["beta"], 0, 10) + stats.halfnorm.logpdf(p["sigma"], scale=10)
    return prior + log_likelihood(d["y"], p["beta"] @ d["X"].T, p["sigma"])


def kilpisjarvi(d, p):
    prior = stats.norm.logpdf(p["alpha"], d["pmualpha"], d["psalpha"])
    prior += stats.norm.logpdf(p["beta"], d["pmubeta"], d["psbeta"])
    mean = p["alpha"][:, None] + p["beta"][:, None] * d["x"]
    return prior + log_likelihood(d["y"], mean, p["sigma"])


def diamonds(d, p):
    centred = d["X"][:, 1:] - d["X"][:, 1:].mean(0)
    prior = log_normal(p["b"], 0, 1) + stats.t.logpdf(p["Intercept"], 3, 8, 10)
    prior += stats.t.logpdf(p["sigma"], 3, 0, 10)
    mean = p["Intercept"][:, None] + p["b"] @ centred.T
    return prior + log_likelihood(d["Y"], mean, p["sigma"])


def autoregression(d, p):
    prior = log_normal(p["beta"], 0, 10) + stats.norm.logpdf(p["alpha"], 0, 10)
    prior += stats.halfcauchy.logpdf(p["sigma"], scale=2.5)
    y, terms = d["y"], []
    for t in range(d["K"], d["T"]):
        mean = p["alpha"]
        for k in range(d["K"]):
            mean = mean + p["beta"][:, k] * y[t - 1 - k]
        terms.append(stats.norm.logpdf(y[t], mean, p["sigma"]))
    return prior + sum(terms)


def arma(d, p):
    mu, phi, theta, sigma = (p[n] for n in ("mu", "phi", "theta", "sigma"))
    density = stats.norm.logpdf(mu, 0, 10) + stats.halfcauchy.logpdf(sigma, scale=2.5)
    density += stats.norm.logpdf(phi, 0, 2) + stats.norm.logpdf(theta, 0, 2)
    y, error = d["y"], d["y"][0] - (mu + phi * mu)
    density += stats.norm.logpdf(error, 0, sigma)
    for t in range(1, d["T"]):
        error = y[t] - (mu + phi * y[t - 1] + theta * error)
        density += stats.norm.logpdf(error, 0, sigma)
    return density


def log_chain(p, emission):
    """The forward algorithm; `emission` has shape (draws, T, states)."""
    rows = np.stack([p["theta1"], p["theta2"]], 1)
    alpha = emission[:, 0]
    for t in range(1, emission.shape[1]):
        terms = alpha[:, :, None] + np.log(rows) + emission[:, t, None, :]
        alpha = np.logaddexp(terms[:, 0], terms[:, 1])
    return np.logaddexp(alpha[:, 0], alpha[:, 1])


def hmm_example(d, p):
    emission = stats.norm.logpdf(d["y"][:, None], p["mu"][:, None, :], 1)
    return log_normal(p["mu"], np.array([3, 10]), 1) + log_chain(p, emission)


def hmm_drive(d, p):
    prior = log_normal(p["phi"], np.array([0, 3]), 1)
    prior += log_normal(p["lambda"], np.array([0, 3]), 1)
    for row, theta in zip(d["alpha"], (p["theta1"], p["theta2"]), strict=True):
        prior += ((row - 1) * np.log(theta)).sum(1)
    emission = stats.norm.logpdf(d["u"][:, None], p["phi"][:, None, :], d["tau"])
    emission += stats.norm.logpdf(d["v"][:, None], p["lambda"][:, None, :], d["rho"])
    return prior + log_chain(p, emission)


def mixture(d, p):
    mu, sigma, theta = p["mu"], p["sigma"], p["theta"][:, None]
    prior = log_normal(mu, 0, 2) + stats.beta.logpdf(p["theta"], 5, 5)
    prior += stats.halfnorm.logpdf(sigma, scale=2).sum(1)
    first = stats.norm.pdf(d["y"], mu[:, [0]], sigma[:, [0]])
    second = stats.norm.pdf(d["y"], mu[:, [1]], sigma[:, [1]])
    return prior + np.log(theta * first + (1 - theta) * second).sum(1)


def covariance(d, p):
    distance = d["x"][:, None] - d["x"]
    rho, alpha = p["rho"][:, None, None], p["alpha"][:, None, None]
    kernel = alpha**2 * np.exp(-(distance**2) / (2 * rho**2))
    return kernel + 1e-10 * np.eye(len(d["x"]))


def poisson_process(d, p):
    prior = stats.gamma.logpdf(p["rho"], 25, scale=1 / 4)
    prior += stats.halfnorm.logpdf(p["alpha"], scale=2)
    c = covariance(d, p)
    quadratic = np.einsum(
        "si,si->s", p["f"], np.linalg.solve(c, p["f"][..., None])[..., 0]
    )
    prior += -(quadratic + np.linalg.slogdet(c)[1]) / 2
    return prior + stats.poisson.logpmf(d["k"], np.exp(p["f"])).sum(1)


def schools(d, p):
    mu, tau = p["mu"], p["tau"]
    prior = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5)
    prior += log_normal(p["theta"], mu[:, None], tau[:, None])
    return prior + log_normal(d["y"], p["theta"], d["sigma"])


DENSITIES = {
    "arK-arK": autoregression,
    "arma-arma11": arma,
    "bball_drive_event_1-hmm_drive_1": hmm_drive,
    "diamonds-diamonds": diamonds,
    "earnings-earn_height": lambda d, p: log_regression(d["earn"], p, d["height"]),
    "earnings-log10earn_height": lambda d, p: log_regression(
        np.log10(d["earn"]), p, d["height"]
    ),
    "earnings-logearn_height_male": lambda d, p: log_regression(
        np.log(d["earn"]), p, d["height"], d["male"]
    ),
    "eight_schools-eight_schools_noncentered": schools,
    "gp_pois_regr-gp_pois_regr": poisson_process,
    "hmm_example-hmm_example": hmm_example,
    "kidiq-kidscore_momhs": kidiq("mom_hs"),
    "kidiq-kidscore_momhsiq": kidiq("mom_hs", "mom_iq"),
    "kidiq-kidscore_momiq": kidiq("mom_iq"),
    "kidiq_with_mom_work-kidscore_mom_work": mom_work,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "low_dim_gauss_mix-low_dim_gauss_mix": mixture,
    "mesquite-logmesquite": log_mesquite,
    "mesquite-mesquite": mesquite,
    "nes1972-nes": nes,
    "nes1984-nes": nes,
    "sblri-blr": blr,
}


# Reference draws as latents of the models
# --------------------------------------------------------------------------------------------


SIMPLEXES = ("bball_drive_event_1-hmm_drive_1", "hmm_example-hmm_example")


def given_arrays(reference):
    """The data by name in posteriordb; arrays in float64."""
    return {
        n: v.double().numpy() if isinstance(v, torch.Tensor) else v
        for n, v in reference.data.items()
    }


def reference_parameters(problem, reference, number=None):
    """By site, arrays of shape (draws, *event): some draws far apart, or all of them."""
    parameters = {}
    for site in problem.parameters:
        scalars = [n for n in reference.draws if n.split("[")[0] == site]
        columns = np.stack([reference.draws[n].numpy().ravel() for n in scalars], -1)
        parameters[site] = columns if "[" in scalars[0] else columns[:, 0]
        if problem.name in SIMPLEXES and site.startswith("theta"):
            # draws in single precision leave the simplex, off which the densities differ
            parameters[site] = columns / columns.sum(1, keepdims=True)
    if number is None:
        return parameters
    step = len(columns) // number
    return {site: value[::step][:number] for site, value in parameters.items()}


def latents_of(name, d, p):
    """The latents of a model at these parameters, and log |∂parameters / ∂latents|."""
    if name.startswith("eight_schools"):
        tau = p["tau"]
        theta_trans = (p["theta"] - p["mu"][:, None]) / tau[:, None]
        latents = {"mu": p["mu"], "tau": tau, "theta_trans": theta_trans}
        return latents, 8 * np.log(tau)
    if name.startswith("gp_pois_regr"):
        factor = np.linalg.cholesky(covariance(d, p))
        f_tilde = np.linalg.solve(factor, p["f"][..., None])[..., 0]
        latents = {"rho": p["rho"], "alpha": p["alpha"], "f_tilde": f_tilde}
        return latents, np.linalg.slogdet(factor)[1]
    return p, 0.0


def tensors(values):
    return {name: torch.from_numpy(v.copy()) for name, v in values.items()}


def sites_at(problem, latents, samples=None):
    """The sites of the model at these latents, with their log-densities."""
    model = poutine.condition(problem.model, latents)
    if samples is not None:
        model = pyro.plate("samples", samples, dim=-2)(model)
    trace = poutine.trace(model).get_trace(problem.data)
    trace.compute_log_prob()
    return {
        n: s
        for n, s in trace.nodes.items()
        if s["type"] == "sample" and not site_is_subsample(s)
    }


class Unconstrained:
    """The unconstrained log-density of a model at many samples."""

    def __init__(self, problem, latents):
        self.problem = problem
        first = sites_at(problem, {name: v[0] for name, v in latents.items()})
        self.in_plate = {n: bool(first[n]["fn"].batch_shape) for n in latents}
        self.transforms = {n: biject_to(first[n]["fn"].support) for n in latents}

    def inverse(self, latents):
        return {n: self.transforms[n].inv(v) for n, v in latents.items()}

    def __call__(self, u):
        size, total, latents = len(next(iter(u.values()))), 0.0, {}
        for n, part in u.items():
            value = self.transforms[n](part)
            jacobian = self.transforms[n].log_abs_det_jacobian(part, value)
            total = total + jacobian.reshape(size, -1).sum(1)
            latents[n] = value if self.in_plate[n] else value.unsqueeze(1)
        for site in sites_at(self.problem, latents, size).values():
            total = total + site["log_prob"].expand(size, -1).sum(1)
        return total

    def gradient(self, u):
        """Shape (samples, D)."""
        u = {n: part.detach().requires_grad_() for n, part in u.items()}
        parts = torch.autograd.grad(self(u).sum(), list(u.values()))
        return torch.cat([g.reshape(len(g), -1) for g in parts], 1)


# Densities
# --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", NAMES)
def test_density_equals_the_stated_one(name):
    problem = posterior_or_skip(name)
    reference = problem.reference()
    d = given_arrays(reference)
    p = reference_parameters(problem, reference, number=20)
    values, log_jacobian = latents_of(name, d, p)
    expected = DENSITIES[name](d, p) + log_jacobian
    latents, found = tensors(values), []
    for i in range(20):
        sites = sites_at(problem, {n: v[i] for n, v in latents.items()})
        found.append(sum(site["log_prob"].sum().item() for site in sites.values()))
    # up to one constant
    np.testing.assert_allclose(
        np.array(found) - found[0], expected - expected[0], rtol=1e-6, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", NAMES)
def test_reference_draws_satisfy_steins_identity(name):
    # E ∇ log p(u) = 0; at five standard errors some 150 components all pass with probability
    # 1 − 1e-4
    problem = posterior_or_skip(name)
    reference = problem.reference()
    p = reference_parameters(problem, reference)
    latents = tensors(latents_of(name, given_arrays(reference), p)[0])
    density = Unconstrained(problem, latents)
    u = density.inverse(latents)
    size = 250  # draws at a time
    parts = zip(*(part.split(size) for part in u.values()), strict=True)
    gradients = [density.gradient(dict(zip(u, part, strict=True))) for part in parts]
    gradient = torch.cat(gradients).reshape(10, 1000, -1).numpy()
    z = []
    for component in np.moveaxis(gradient, -1, 0):
        ess = array_stats.ess(component, chain_axis=0, draw_axis=1, method="mean")
        z.append(component.mean() / (component.std() / math.sqrt(ess)))
    assert np.abs(z).max() < 5, np.round(z, 1)


# Many samples
# --------------------------------------------------------------------------------------------


def mean_field(problem):
    return vilvm.Pair(
        problem.model, AutoNormal(problem.model, init_loc_fn=init_to_origin)
    )


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", NAMES)
def test_seven_samples_at_once_equal_seven_runs(name):
    problem = posterior_or_skip(name)
    joint = LogJoint(mean_field(problem), problem.data, improper=True)
    u = joint.draw(7)
    together = joint(u).target
    alone = torch.cat([joint(u[i : i + 1]).target for i in range(7)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert together.isfinite().all()
    strategies = joint.layout.vectorisation.strategies.values()
    assert {strategy.name for strategy in strategies} == {VECTORISED}


@pytest.mark.parametrize("name", NAMES)
def test_model_and_data_fit_in_float32(name):
    problem = posterior_or_skip(name)
    lvm = mean_field(problem)
    layout = find_layout(lvm, problem.data)
    assert layout.num_data == len(vilvm.Data(problem.data))
    with torch.no_grad():
        latents = lvm.guide(problem.data)
    assert {value.dtype for value in latents.values()} == {torch.float32}
    for site in sites_at(problem, latents).values():
        assert site["value"].dtype == torch.float32
        assert site["log_prob"].dtype == torch.float32
        assert site["log_prob"].isfinite().all()


@pytest.mark.usefixtures("_float64")
def test_indefinite_covariance_has_no_density():
    problem = posterior_or_skip("gp_pois_regr-gp_pois_regr")
    alpha = torch.tensor([[1.0], [1e6]])
    latents = {"alpha": alpha, "rho": 100 + 0 * alpha, "f_tilde": torch.zeros(2, 1, 11)}
    with pyro.validation_enabled(False):
        density = sites_at(problem, latents, samples=2)["k"]["log_prob"]
    assert density[0].isfinite().all()
    assert density[1].isnan().all()


# The interface
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scalars_have_the_names_of_the_reference(name):
    problem = posterior_or_skip(name)
    reference = problem.reference()
    p = tensors(reference_parameters(problem, reference))
    for sample_shape in [(10_000,), (10, 1000)]:
        values = {n: v.reshape(*sample_shape, *v.shape[1:]) for n, v in p.items()}
        scalars = problem.scalars(values, sample_dims=len(sample_shape))
        assert set(scalars) == set(reference.draws)
        for scalar, draws in scalars.items():
            assert draws.shape == sample_shape
            expected = reference.draws[scalar].reshape(sample_shape)
            torch.testing.assert_close(draws, expected)


@pytest.mark.parametrize(
    "name",
    ["eight_schools-eight_schools_noncentered", "gp_pois_regr-gp_pois_regr"],
)
def test_scalars_of_deterministic_sites(name):
    problem = posterior_or_skip(name)
    lvm = mean_field(problem)
    latents = vilvm.posterior(lvm, problem.data, num_samples=5)
    values = {**latents, **replay(lvm, problem.data, latents).deterministics}
    scalars = problem.scalars(values)
    assert set(scalars) == set(problem.reference().draws)
    assert {draws.shape for draws in scalars.values()} == {(5,)}


def test_scalars_of_a_matrix_have_two_indices():
    problem = Problem("a-b", print, torch.ones(1), ("theta",))
    theta = torch.arange(12.0).reshape(3, 2, 2)
    scalars = problem.scalars({"theta": theta, "other": theta})
    assert list(scalars) == ["theta[1,1]", "theta[1,2]", "theta[2,1]", "theta[2,2]"]
    torch.testing.assert_close(scalars["theta[2,1]"], theta[:, 1, 0])


def test_scalars_names_a_missing_site():
    problem = Problem("a-b", print, torch.ones(1), ("theta",))
    with pytest.raises(ValueError, match="lack the site 'theta'"):
        problem.scalars({"eta": torch.ones(3)})
    with pytest.raises(ValueError, match="fewer than the 2 dimensions"):
        problem.scalars({"theta": torch.ones(3)}, sample_dims=2)


@pytest.mark.parametrize("name", ["mesquite", "", 3, ["mesquite-mesquite"]])
def test_unknown_name_lists_the_known(name):
    with pytest.raises(ValueError, match=r"choose from .*mesquite-mesquite"):
        posterior(name)


def test_every_density_is_tested():
    assert set(DENSITIES) == set(NAMES)
    assert len(NAMES) == 21


def test_moving_average_errors_equal_the_recursion():
    for length in (1, 2, 7, 8, 200):
        r = torch.randn(3, 1, length, dtype=torch.float64)
        theta = torch.tensor([0.9, -1.1, 0.0], dtype=torch.float64).reshape(3, 1, 1)
        expected = [r[..., 0]]
        for t in range(1, length):
            expected.append(r[..., t] - theta[..., 0] * expected[-1])
        found = moving_average_errors(r, theta)
        torch.testing.assert_close(found, torch.stack(expected, -1))
