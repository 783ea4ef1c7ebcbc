import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy import stats

import vilvm
from vilvm.evaluation import evaluate
from vilvm.models.vae import VAE
from vilvm.wrappers import InFloat64, float64

# A trend over calendar years: in float32 its log-density is wrong by more than 1 nat.
YEARS = torch.arange(1960.0, 2020.0)
PRICES = 1e6 + 3e3 * (YEARS - 1990) + 10 * torch.cos(YEARS)


def model(batch):
    x, y = batch
    a = pyro.sample("a", dist.Normal(0.0, 1e7))
    b = pyro.sample("b", dist.Normal(0.0, 1e5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 10.0), obs=y)


def regression():
    return vilvm.Pair(model, AutoMultivariateNormal(model))


def expected(a, b):
    x, y = (t.double().numpy() for t in (YEARS, PRICES))
    return stats.norm.logpdf(y, a[:, None] + b[:, None] * x, 10.0).sum(1)


@torch.no_grad()
def test_log_likelihood_has_the_digits_of_float64():
    lvm, batch = InFloat64(regression()), (YEARS, PRICES)
    vilvm.log_weights(lvm, batch)  # the guide creates its parameters
    guide = lvm.lvm.guide
    guide.loc.copy_(torch.tensor([1e6 - 3e3 * 1990, 3e3]))
    guide.scale = torch.tensor([1.0, 1e-3]).double()
    weights = vilvm.log_weights(lvm, batch, 20)
    a, b = (weights.latents[n].double().flatten().numpy() for n in "ab")
    found = weights.log_likelihood.double().reshape(20, -1).sum(1)
    np.testing.assert_allclose(found, expected(a, b), rtol=1e-9)
    # float32 cannot give these digits
    single = torch.tensor(a).float()[:, None] + torch.tensor(b).float()[:, None] * YEARS
    rounded = dist.Normal(single, 10.0).log_prob(PRICES).sum(1)
    assert abs(rounded.numpy() - expected(a, b)).max() > 1


def test_default_dtype_is_restored_after_a_failure():
    def failing(batch):
        assert torch.get_default_dtype() is torch.float64
        raise ArithmeticError

    lvm = InFloat64(vilvm.Pair(failing, lambda batch: None))
    with pytest.raises(ArithmeticError):
        lvm.model(torch.zeros(3))
    assert torch.get_default_dtype() is torch.float32
    with float64(), float64():
        pass
    assert torch.get_default_dtype() is torch.float32


def test_bounds_agree_with_those_of_float32():
    x = torch.bernoulli(torch.full((30, 6), 0.4))
    lvm = VAE(6, 2)
    single = evaluate(lvm, x, num_samples=50).bounds["iwae"]
    double = evaluate(InFloat64(lvm), x, num_samples=50).bounds["iwae"]
    assert {p.dtype for p in lvm.parameters()} == {torch.float64}
    # other draws: 50 samples of a datum differ by their Monte Carlo error
    error = math.hypot(single.se, double.se)
    assert abs(single.mean - double.mean) < 5 * error


def test_training_keeps_float64():
    x = torch.randn(40, 6)
    lvm = InFloat64(VAE(6, 2, likelihood="gaussian"))
    history = vilvm.fit(lvm, x, steps=5, progress=False).history
    assert all(math.isfinite(value) for value in history["elbo"])
    assert {p.dtype for p in lvm.parameters()} == {torch.float64}
