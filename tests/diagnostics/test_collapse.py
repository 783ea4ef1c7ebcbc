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


def test_noise_that_is_handed_on_makes_no_unit_active():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))

    def following(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.2 * x, 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))

    # Var of the mean of b: 0, and 0.04; each estimate has a standard error of 1 / 50 / sqrt(2500) = 0.0004.
    found = {g.__name__: active_units(vilvm.Pair(model, g), torch.randn(2500)) for g in (guide, following)}
    assert {name: [bool(units["a"]), bool(units["b"])] for name, units in found.items()} == {
        "guide": [False, False],
        "following": [True, True],
    }


def test_one_datum_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        active_units(vilvm.Pair(lambda x: None, lambda x: None), torch.zeros(1, 3))
