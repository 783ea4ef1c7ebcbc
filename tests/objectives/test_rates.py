"""Objectives that change the rate against computations by hand: weight, target, free bits, TC."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions import Normal, kl_divergence

from tests.objectives.linear_gaussian import Scaled, two_layers
from vilvm._runtime.random import seeded
from vilvm.lvm import ContractError, Pair
from vilvm.models.vae import tiny
from vilvm.objectives import STL, Annealed, BetaELBO, BetaTC, FreeBits


def terms(lvm, x):
    """By hand: q(z | x), the draw, log q − log p by datum and dimension, and the distortion."""
    mean, log_variance = lvm.encoder(x).chunk(2, -1)
    q = Normal(mean, (log_variance / 2).exp())
    z = q.rsample()
    rates = q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    return q, z, rates, -lvm.decode(z).log_prob(x).sum()


def assert_same_step(lvm, x, objective, by_hand):
    """Loss and gradients of an objective equal those of a function of the model."""
    parameters = list(lvm.parameters())
    found = []
    for loss_of in (
        lambda: objective.differentiable_loss(lvm.model, lvm.guide, x),
        by_hand,
    ):
        with seeded(0):
            loss = loss_of()
        found.append([loss, *torch.autograd.grad(loss, parameters)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected.to(ours), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inner", [Trace_ELBO(), STL(1, True, 1)])
def test_beta_weights_the_rate(inner):
    lvm, x = tiny()
    objective = BetaELBO(4.0, inner)
    with seeded(0):
        _, _, rates, distortion = terms(lvm, x)
    with seeded(0):
        loss = objective.differentiable_loss(lvm.model, lvm.guide, x)
    torch.testing.assert_close(loss.float(), distortion + 4 * rates.sum())


@pytest.mark.parametrize("scale", [1.0, 0.2])
@pytest.mark.parametrize("steps_taken", [0, 3, 50])
def test_capacity_is_a_target_for_the_rate(steps_taken, scale):
    lvm, x = tiny()
    objective = BetaELBO(100.0, TraceMeanField_ELBO(), capacity=2.0, capacity_steps=10)
    objective.step = steps_taken
    target = min(0.2 * steps_taken, 2.0)

    def by_hand():
        q, _, _, distortion = terms(lvm, x)
        rate = kl_divergence(q, Normal(0.0, 1.0)).sum()
        return scale * (distortion + 100 * (rate - target * len(x)).abs())

    assert objective.target == pytest.approx(target)
    assert_same_step(Scaled(lvm, scale), x, objective, by_hand)


def test_warm_up_weights_the_named_latents():
    lvm, x = two_layers()
    objective = Annealed(Trace_ELBO(), warmup=10, start=0.3, sites=["z2"])
    with seeded(0):
        loss = objective.differentiable_loss(lvm.model, lvm.guide, x)
    with seeded(0):
        z1 = Normal(lvm.m * x, lvm.s).rsample()
        z2 = Normal(lvm.c * z1, lvm.t).rsample()
    first = Normal(lvm.m * x, lvm.s).log_prob(z1) - Normal(lvm.a * z2, 1.0).log_prob(z1)
    second = Normal(lvm.c * z1, lvm.t).log_prob(z2) - Normal(0.0, 1.0).log_prob(z2)
    distortion = -Normal(lvm.b * z1, 1.0).log_prob(x)
    torch.testing.assert_close(loss, (distortion + first + 0.3 * second).sum())


def test_warm_up_reaches_draws_of_an_autoguide():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x, guide = torch.tensor([1.0, 2.0]), AutoNormal(model)
    losses = []
    for sites in (None, ["mu"]):
        objective = Annealed(Trace_ELBO(), warmup=10, start=0.3, sites=sites)
        guide(x)
        with seeded(0):
            losses.append(objective.differentiable_loss(model, guide, x))
    assert losses[0] == losses[1]


def test_unknown_site_is_refused():
    lvm, x = two_layers()
    objective = Annealed(Trace_ELBO(), warmup=10, sites=["z3"])
    with pytest.raises(ValueError, match="'z3', and no latent"):
        objective.differentiable_loss(lvm.model, lvm.guide, x)


# Free bits
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.2])
@pytest.mark.parametrize("nats", [0.0, 0.02, 0.4, 5.0])
@pytest.mark.parametrize("per", ["latent", "dimension"])
def test_free_bits_equal_the_computation_by_hand(per, nats, scale):
    lvm, x = tiny()
    pair = Scaled(lvm, scale)

    def by_hand():
        _, _, rates, distortion = terms(lvm, x)
        groups = rates.mean(0)
        if per == "latent":
            groups = groups.sum()
        return scale * (distortion + len(x) * groups.clamp(min=nats).sum())

    assert_same_step(pair, x, FreeBits(nats, per, max_plate_nesting=1), by_hand)


def test_free_bits_group_by_latent():
    lvm, x = two_layers()
    with seeded(0):
        loss = FreeBits(50.0, max_plate_nesting=1).loss(lvm.model, lvm.guide, x)
    with seeded(0):
        z1 = Normal(lvm.m * x, lvm.s).rsample()
    distortion = -Normal(lvm.b * z1, 1.0).log_prob(x).sum()
    assert loss == pytest.approx(distortion.item() + 2 * len(x) * 50.0)


def test_free_bits_of_latents_drawn_together_are_refused():
    lvm, x = two_layers()
    guide = AutoMultivariateNormal(lvm.model)
    with pytest.raises(ContractError, match="draws latents together"):
        FreeBits(1.0).loss(lvm.model, guide, x)


# Total correlation
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_total_correlation_equals_the_sums_by_hand(scale):
    lvm, x = tiny()
    size, dims, number = len(x), 2, 40

    def by_hand():
        q, z, rates, distortion = terms(lvm, x)
        correlation = 0.0
        for n in range(size):
            each = [
                [
                    Normal(q.mean[m, i], q.stddev[m, i]).log_prob(z[n, i]).exp()
                    for i in range(dims)
                ]
                for m in range(size)
            ]
            joint = sum(math.prod(row) for row in each) / (number * size)
            single = [
                sum(row[i] for row in each) / (number * size) for i in range(dims)
            ]
            correlation = correlation + joint.log() - sum(s.log() for s in single)
        return scale * (distortion + rates.sum() + 5 * correlation)

    objective = BetaTC(6.0, num_data=number, max_plate_nesting=1)
    assert_same_step(Scaled(lvm, scale), x, objective, by_hand)


def test_total_correlation_needs_the_name_of_a_latent():
    lvm, x = two_layers()
    with pytest.raises(ContractError, match="name one of them"):
        BetaTC(4.0).loss(lvm.model, lvm.guide, x)
    with pytest.raises(ContractError, match="no latent is called 'z3'"):
        BetaTC(4.0, latent="z3").loss(lvm.model, lvm.guide, x)
    assert math.isfinite(BetaTC(4.0, latent="z2").loss(lvm.model, lvm.guide, x))


def test_correlated_guide_has_no_dimensions():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x, torch.eye(2)))

    pair = Pair(model, guide)
    for objective in (BetaTC(4.0), FreeBits(1.0, "dimension")):
        with pytest.raises(ContractError, match="'z' is MultivariateNormal"):
            objective.loss(pair.model, pair.guide, torch.zeros(3, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: BetaELBO(-1.0),
        lambda: BetaELBO(1.0, capacity=-1.0),
        lambda: BetaELBO(1.0, BetaTC(2.0)),
        lambda: Annealed(Trace_ELBO(), 5, sites="z"),
        lambda: BetaTC(0.0),
        lambda: FreeBits(-1.0),
        lambda: FreeBits(1.0, "pixel"),
        lambda: STL(0),
    ],
)
def test_bad_arguments_raise(make):
    with pytest.raises(ValueError, match=r"BetaELBO|Annealed|BetaTC|FreeBits|STL"):
        make()
