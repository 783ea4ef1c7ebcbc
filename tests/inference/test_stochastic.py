"""Fits to batches against the exact posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm


def regression(data):
    x, y = data
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def local(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def data_of(num):
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, num, generator=generator, dtype=torch.float64)
    return x, 0.5 * x + noise


# 1,000 is not a multiple of 150, so that a smaller batch remains
@pytest.mark.parametrize("batch_size", [150, 250])
def test_batches_find_the_exact_posterior(batch_size):
    x, y = data_of(1000)
    found = vilvm.infer(
        regression, (x, y), batch_size=batch_size, seed=1, progress=False
    )
    precision = 1 / 100 + (x * x).sum()
    mean, sd = (x * y).sum() / precision, precision.rsqrt()
    assert found.trusted, found
    row = found.summary()["slope"]
    assert abs(row.mean - mean) < 5 * row.mcse  # fails once in 1.7 million runs
    assert abs(row.sd / sd - 1) < 5 / (2 * row.ess) ** 0.5
    normal = dist.MultivariateNormal(
        torch.zeros_like(y), torch.eye(len(y)).double() + 100 * torch.outer(x, x)
    )
    evidence = found.log_evidence
    assert abs(evidence.mean - normal.log_prob(y)) < 5 * evidence.mc_se + 1e-6


def test_a_batch_of_all_data_is_the_usual_way():
    x, y = data_of(40)
    ways = [
        vilvm.infer(regression, (x, y), batch_size=size, progress=False)
        for size in (None, 40)
    ]
    assert torch.equal(ways[0].draws["slope"], ways[1].draws["slope"])


def test_batches_need_latents_outside_the_data_plate():
    with pytest.raises(vilvm.ContractError, match="batch_size needs a plate over"):
        vilvm.infer(local, torch.zeros(10), batch_size=5, progress=False)


def test_batch_size_is_a_whole_number():
    with pytest.raises(ValueError, match="batch_size"):
        vilvm.infer(regression, data_of(10), batch_size=0.5, progress=False)
