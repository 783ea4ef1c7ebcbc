"""Active units of guides whose answer is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.diagnostics import active_units


def test_a_unit_that_follows_the_data_is_active_and_one_at_the_prior_is_not():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.stack([0.5 * x, 0 * x], -1), 0.7).to_event(1))

    active = active_units(vilvm.Pair(model, guide), torch.randn(2500))
    assert active["z"].tolist() == [True, False]


def test_one_datum_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        active_units(vilvm.Pair(lambda x: None, lambda x: None), torch.zeros(1, 3))
