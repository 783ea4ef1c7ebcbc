"""The log-density of the latents and its derivatives."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample

from tests.inference.exact import curved, groups, mean_model, mixture, mixture_data
from vilvm.inference._preparation import own_model, prepare_data, target_of

Y = torch.tensor([0.5, 1.5, 3.0])
GROUPS = (torch.linspace(-2, 2, 10), torch.arange(10) % 5)


def correlated(y):
    """A covariance that is positive definite for correlations within (−1, 1) only."""
    r = pyro.sample("r", dist.Normal(0.0, 1.0))
    one = torch.ones_like(r)
    rows = torch.stack([torch.stack([one, r], -1), torch.stack([r, one], -1)], -2)
    tril = torch.linalg.cholesky(rows)
    with pyro.plate("data", len(y)):
        pyro.sample(
            "y", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril), obs=y
        )


def ratio(y):
    """Zero density where the bound is below a datum."""
    bound = pyro.sample("bound", dist.Normal(2.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Uniform(0.0, bound, validate_args=False), obs=y)


class Network(PyroModule):
    """A layer that runs one sample at a time only."""

    def __init__(self):
        super().__init__()
        self.net = PyroModule[torch.nn.Linear](2, 1)
        self.net.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.net.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, batch):
        x, y = batch
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def target(model, data):
    return target_of(own_model(model), prepare_data(data))


def points(target, num=5):
    return torch.randn(num, target.dim, dtype=torch.float64) / 2


MODELS = {
    "mean": (mean_model, Y),
    "scale": (curved, Y),
    "groups": (groups, GROUPS),
    "simplex and enumeration": (mixture, mixture_data()),
    "covariance": (
        correlated,
        torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
    ),
}
VMAP = pytest.mark.filterwarnings("ignore:.*samples are run through torch.vmap")


def test_density_is_that_of_the_formulas():
    t = target(curved, Y)
    u = points(t)
    mu, sigma = u[:, 0], u[:, 1].exp()
    exact = (
        dist.Normal(0.0, 5.0).log_prob(mu)
        + dist.HalfNormal(3.0).log_prob(sigma)
        + u[:, 1]
    )
    exact = exact + dist.Normal(mu[:, None], sigma[:, None]).log_prob(Y.double()).sum(1)
    # the constants of the priors are in float32
    assert torch.allclose(t(u), exact, rtol=1e-6)


@VMAP
@pytest.mark.parametrize("name", MODELS)
def test_derivatives_equal_finite_differences(name):
    t = target(*MODELS[name])
    u = points(t)
    if name == "covariance":
        u = u.clamp(-0.9, 0.9)
    value, gradient, hessian = t.hessian(u)
    again, same = t.gradient(u)
    assert torch.allclose(value, t(u))
    assert torch.allclose(again, value)
    assert torch.allclose(same, gradient)
    step = 1e-5 * torch.eye(t.dim, dtype=torch.float64)
    ahead, behind = ((u[:, None] + s * step).flatten(0, 1) for s in (1, -1))
    slope = ((t(ahead) - t(behind)) / 2e-5).reshape(gradient.shape)
    assert torch.allclose(slope, gradient, rtol=1e-5, atol=1e-6)
    curvature = ((t.gradient(ahead)[1] - t.gradient(behind)[1]) / 2e-5).reshape(
        hessian.shape
    )
    assert torch.allclose(curvature, hessian, rtol=1e-5, atol=1e-6)


@VMAP
@pytest.mark.parametrize(
    "name",
    [
        "groups",
        pytest.param("simplex and enumeration", marks=pytest.mark.slow),
        "covariance",
    ],
)
def test_traced_gradient_equals_eager_one(name):
    t = target(*MODELS[name])
    u = points(t).clamp(-0.9, 0.9)
    value, gradient = t._gradient(u)
    for _ in range(31):
        t.gradient(u)
    assert t._programs[len(u)] is not None
    other = u / 2
    for at, (v, g) in ((u, (value, gradient)), (other, t._gradient(other))):
        found = t.gradient(at)
        assert torch.allclose(found[0], v)
        assert torch.allclose(found[1], g)


@pytest.mark.parametrize("name", ["support", "Cholesky"])
def test_points_without_a_density_have_minus_infinity(name):
    model, data, bad = {
        "support": (ratio, Y, 1.0),
        "Cholesky": (correlated, MODELS["covariance"][1], 3.0),
    }[name]
    t = target(model, data)
    good = 4.0 if name == "support" else 0.5
    u = torch.tensor([[good], [bad], [good], [bad]]).double()
    outside = torch.tensor([False, True, False, True])
    alone = t(u[:1])
    value, gradient, hessian = t.hessian(u)
    for found in (t(u), t.gradient(u)[0], value):
        assert (found[outside] == -math.inf).all()
        assert torch.allclose(found[~outside], alone.expand(2))
    assert (gradient[outside] == 0).all()
    assert (hessian[outside] == 0).all()
    assert gradient[~outside].isfinite().all()
    assert (gradient[~outside] != 0).all()
    assert (t(u[outside]) == -math.inf).all()
    for _ in range(32):  # the same once it is traced
        found = t.gradient(u)
    assert (found[0][outside] == -math.inf).all()
    assert torch.allclose(found[1], gradient)


@VMAP
def test_model_that_runs_one_sample_at_a_time_has_exact_density():
    x, y = torch.randn(7, 2), torch.randn(7)
    t = target(Network(), (x, y))
    u = points(t)
    mean = u[:, :2] @ x.double().T + u[:, 2:]
    exact = dist.Normal(0.0, 1.0).log_prob(u[:, :2]).sum(1)
    exact = exact + dist.Normal(0.0, 10.0).log_prob(u[:, 2])
    exact = exact + dist.Normal(mean, 1.0).log_prob(y.double()).sum(1)
    assert torch.allclose(t(u), exact, rtol=1e-6)
    assert torch.allclose(t.gradient(u)[0], exact, rtol=1e-6)


def test_points_are_counted():
    t = target(mean_model, Y)
    t(points(t, 3))
    t.gradient(points(t, 4))
    assert (t.densities, t.gradients) == (3, 4)
    t.hessian(points(t, 2))
    assert t.gradients == 4 + 2 * (1 + t.dim)


def test_many_points_are_run_in_parts():
    t = target(curved, Y)
    u = points(t, 7)
    whole = t.hessian(u)
    t.most = 3
    for a, b in zip(whole, t.hessian(u), strict=True):
        assert torch.allclose(a, b)
