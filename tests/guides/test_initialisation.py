import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.distributions import biject_to

from vilvm.guides import init_to_origin

PRIORS = {
    "flat on the half-line": dist.ImproperUniform(constraints.positive, (), ()),
    "flat vector": dist.ImproperUniform(constraints.real_vector, (), (3,)),
    "flat in a plate": dist.ImproperUniform(constraints.real, (4,), ()),
    "simplex": dist.Dirichlet(torch.ones(3)),
    "ordered": dist.ImproperUniform(constraints.ordered_vector, (), (3,)),
    "matrix": dist.LKJCholesky(3),
}


@pytest.mark.parametrize("name", PRIORS)
def test_unconstrained_value_is_zero(name):
    prior = PRIORS[name]
    value = init_to_origin({"fn": prior})
    assert value.shape == prior.shape()
    assert prior.support.check(value).all()
    assert biject_to(prior.support).inv(value).abs().max() < 1e-5


def test_discrete_latent_is_drawn():
    torch.manual_seed(0)
    value = init_to_origin({"fn": dist.Categorical(torch.tensor([0.0, 1.0, 0.0]))})
    assert value.item() == 1
