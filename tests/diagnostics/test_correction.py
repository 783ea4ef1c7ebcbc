"""What importance weights would correct, where the posterior is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from models.ppca import PPCA
from vilvm.diagnostics.correction import correction
from vilvm.diagnostics.finding import Gravity

X = torch.tensor([1.0, 2.0, 0.5, 1.5])


def pair(mean_shift=0.0, scale=1.0):
    """A normal mean and its posterior, N(4 m̄ / 5, 1 / 5), shifted in its own standard deviations, and scaled."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(1.0 + mean_shift * 0.2**0.5, scale * 0.2**0.5))

    return vilvm.Pair(model, guide)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.0, 1.25), (-0.4, 0.85)])
def test_it_tells_shift_and_ratio(shift, scale):
    found = correction(pair(shift, scale), X)
    assert found.names == ("mu",)
    assert abs(found.shift.item() + shift) < 5 * found.shift_se.item() + 1e-6
    assert abs(found.ratio.item() - scale) < 5 * found.ratio_se.item() + 1e-6
    bad = abs(shift) > 0.1 or abs(scale - 1) > 0.1
    assert found.finding.gravity == (Gravity.WARNING if bad else Gravity.FINE)
    assert ("mu: mean to be moved" in found.finding.verdict) == bad


def test_standard_errors_are_those_of_repetition():
    runs = [correction(pair(0.3, 1.1), X, num_samples=1000, seed=seed) for seed in range(60)]
    for name in ("shift", "ratio"):
        spread = torch.stack([getattr(r, name) for r in runs]).std()
        told = torch.stack([getattr(r, f"{name}_se") for r in runs]).mean()
        assert 0.6 < spread / told < 1.5  # of 60 runs, a standard deviation is known to 9 %


def test_uneven_weights_cannot_tell():
    found = correction(pair(0.0, 0.3), X)
    assert not found.reliable
    assert found.finding.gravity == Gravity.WARNING


def test_it_is_for_shared_latents():
    with pytest.raises(vilvm.ContractError, match="no latent of PPCA is shared by its data"):
        correction(PPCA(4, 2), torch.randn(5, 4))
