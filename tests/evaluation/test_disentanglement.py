"""The mutual information gap on codes whose mutual information is known."""

import math

import pytest
import torch

from vilvm.evaluation import mig


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(size, (20_000,), generator=generator)
        for name, size in (("a", 4), ("b", 2))
    }


def noise(count=20_000, seed=1):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def test_a_dimension_for_each_factor_has_gap_one(factors):
    codes = torch.stack([factors["b"], -factors["a"]], 1) + 0.01 * noise()[:, None]
    found = mig(codes, factors)
    assert found.score == pytest.approx(1, abs=0.03)  # a bin may straddle two values
    assert found.entropies["a"] == pytest.approx(math.log(4), abs=1e-3)


def test_two_dimensions_for_one_factor_have_gap_zero(factors):
    codes = torch.stack([factors["a"], 2 * factors["a"]], 1) + 0.01 * noise()[:, None]
    assert mig(codes, factors).gaps["a"] == pytest.approx(0, abs=0.01)


def test_noisy_copy_has_the_information_of_its_channel(factors):
    """A bit that is flipped with probability 0.1 keeps log 2 − h(0.1) nats."""
    flipped = factors["b"] ^ (noise() < 0.1).long()
    codes = torch.stack([flipped + 0.01 * noise(seed=2), noise(seed=3)], 1)
    found = mig(codes, factors, num_bins=10)
    kept = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    assert found.information["b"][0].item() == pytest.approx(kept, abs=0.02)
    assert found.gaps["b"] == pytest.approx(kept / math.log(2), abs=0.03)


def test_gaussian_channel_agrees_with_quadrature(factors):
    """z = b + N(0, ½²): I = H(z) − H(noise), z a mixture of two normals."""
    z = torch.linspace(-4, 5, 9001).double()
    each = [torch.distributions.Normal(m, 0.5).log_prob(z).exp() for m in (0.0, 1.0)]
    mixture = (each[0] + each[1]) / 2
    entropy = -torch.trapezoid(torch.xlogy(mixture, mixture), z)
    exact = entropy - 0.5 * math.log(2 * math.pi * math.e * 0.25)
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(4))
    codes = torch.stack([factors["b"] + 0.5 * normal, noise()], 1)
    found = mig(codes, factors, num_bins=40).information["b"][0]
    assert found.item() == pytest.approx(exact.item(), abs=0.02)


def test_independent_codes_have_no_bias():
    """The mean over 100 sets; |z| < 5 for one number."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(100):
        codes = torch.rand(500, 2, generator=generator)
        factor = torch.randint(5, (500,), generator=generator)
        drawn.append(mig(codes, {"a": factor}).information["a"][0])
    drawn = torch.stack(drawn)
    assert drawn.mean().abs() < 5 * drawn.std() / 10 + 2e-3


@pytest.mark.parametrize(
    ("codes", "factor", "message"),
    [
        (torch.rand(30, 1), torch.arange(30), "two dimensions at least"),
        (torch.rand(5, 2), torch.arange(5), "5 data are too few for 20 bins"),
        (torch.rand(30, 2), torch.zeros(30), "factor 'a' must have two values"),
        (torch.rand(30, 2), torch.arange(29), "one for each of 30 codes"),
    ],
)
def test_bad_arguments(codes, factor, message):
    with pytest.raises(ValueError, match=message):
        mig(codes, {"a": factor})
