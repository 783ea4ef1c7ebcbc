"""Priors trained with the model, compared with loops by hand, quadrature and exact evidences."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import vilvm
from vilvm.evaluation import Schedule, ais
from vilvm.guides import RealNVP as FlowGuide
from vilvm.guides import normal
from vilvm.lvm import ContractError
from vilvm.models.vae import VAE
from vilvm.priors import Mixture, RealNVP, VampPrior, fit_prior
from vilvm.testing import check_lvm
from vilvm.weights.guide_density import guide_log_prob


class Noisy(nn.Module):
    """x ~ N(z, ¼ I) in two dimensions, z from a learned prior."""

    def __init__(self, prior):
        super().__init__()
        self.prior, self.encoder = prior, nn.Linear(2, 4)

    def encode(self, x):
        return normal(self.encoder(x))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(self.encode))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encode(x))


def grid(width=9.0, points=601):
    """Points of a square in the plane, and the logarithm of the area of each."""
    axis = torch.linspace(-width, width, points)
    return torch.cartesian_prod(axis, axis), 2 * math.log(2 * width / (points - 1))


def bent():
    """A RealNVP prior at some distance from N(0, I)."""
    prior = RealNVP(2, layers=3, hidden=(8, 8))
    with torch.no_grad():
        for network in prior.layers.networks:
            for parameter in network.layers[-1].parameters():
                parameter.mul_(100)  # it starts near the identity
    return prior


PRIORS = {
    "vamp": lambda: VampPrior(torch.randn(3, 2)),
    "mixture": lambda: Mixture(2, components=3),
    "real_nvp": bent,
}


def vae(x, head=normal):
    prior = VampPrior(x, bounds=(0, 1))
    sizes = {"encoder_hidden": (8,), "decoder_hidden": (8,)}
    return VAE(6, 3, head=head, prior=prior, **sizes)


# The VampPrior
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [normal, FlowGuide(3, context_dim=2, hidden=(8,))])
def test_vamp_prior_equals_a_loop_by_hand(head):
    u, z = torch.rand(4, 6), torch.randn(5, 2, 3)
    lvm = vae(u, head)
    each = [lvm.encode(one).log_prob(z) for one in u]
    by_hand = torch.stack(each).logsumexp(0) - math.log(4)
    torch.testing.assert_close(lvm.prior_of_z().log_prob(z), by_hand)


def test_vamp_prior_at_all_data_is_the_aggregated_posterior():
    x, z = torch.rand(7, 6).round(), torch.randn(5, 3)
    lvm = vae(x)
    each = guide_log_prob(lvm, x, {"z": z[:, None].expand(5, 7, 3)})
    aggregated = each.logsumexp(1) - math.log(7)
    torch.testing.assert_close(
        lvm.prior_of_z().log_prob(z).double(), aggregated.double(), rtol=1e-5, atol=1e-5
    )


def test_pseudo_inputs_beyond_their_bounds_are_trained():
    x = torch.rand(5, 6).round()
    lvm = vae(torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1, 2.0]).repeat(4, 1))
    assert lvm.prior.inputs.min() == 0
    assert lvm.prior.inputs.max() == 1
    vilvm.log_weights(lvm, x, 3).log_weight.sum().backward()
    assert (lvm.prior.pseudo_inputs.grad != 0).all()


def test_vamp_prior_refuses_an_encoder_of_another_shape():
    prior = VampPrior(torch.rand(4, 6))
    with pytest.raises(ContractError, match=r"batch shape \(\); it must be \(4,\)"):
        prior(lambda u: dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_vamp_prior_refuses_what_is_no_tensor():
    with pytest.raises(ValueError, match="VampPrior: pseudo_inputs"):
        VampPrior(500)


# RealNVP
# --------------------------------------------------------------------------------------------


def test_real_nvp_density_integrates_to_one():
    points, area = grid()
    density = (bent()().log_prob(points) + area).exp()
    assert density.sum().item() == pytest.approx(1, abs=1e-3)


def test_real_nvp_draws_follow_its_density():
    """5 standard errors of 3 numbers, beside the error of the quadrature."""
    prior, (points, area) = bent()(), grid()
    density = (prior.log_prob(points) + area).exp().double()
    drawn = prior.sample((20_000,)).double()
    for f in (lambda z: z[:, 0], lambda z: z[:, 1] ** 2, lambda z: z[:, 0] * z[:, 1]):
        values, exact = f(drawn), (density @ f(points).double()).item()
        error = values.std().item() / len(values) ** 0.5
        assert abs(values.mean().item() - exact) < 5 * error + 2e-3


def test_real_nvp_needs_two_dimensions():
    with pytest.raises(
        ValueError, match="dimension of a flow must be a whole number, at least 2"
    ):
        RealNVP(1)


# In a model
# --------------------------------------------------------------------------------------------


def evidence(lvm, x):
    """log p(x): convolved with the noise in closed form, or by quadrature for a flow."""
    prior = lvm.prior(lvm.encode)
    if hasattr(prior, "scales"):
        prior.scales = (prior.scales.square() + 0.25).sqrt()
        return prior.log_prob(x)
    points, area = grid()
    given_z = dist.Normal(points, 0.5).to_event(1).log_prob(x[:, None])
    return (given_z + prior.log_prob(points) + area).logsumexp(1)


@pytest.mark.parametrize(
    "name",
    ["vamp", *(pytest.param(n, marks=pytest.mark.slow) for n in list(PRIORS)[1:])],
)
def test_bounds_reach_the_exact_evidence(name):
    """Of 10 data each, 5 standard errors and a bias of 1/ess."""
    lvm, x = Noisy(PRIORS[name]()), torch.randn(10, 2)
    with torch.no_grad():
        lvm.encoder.weight.mul_(0.5)
        exact = evidence(lvm, x).double()
    found = vilvm.evaluate(lvm, x, num_samples=2000, bounds="iwae").bounds["iwae"]
    assert ((found.values - exact).abs() < 5 * found.errors + 0.01).all()
    schedule = Schedule(num_chains=30, num_temperatures=20, leapfrog=2)
    annealed = ais(lvm, x, schedule).bound
    assert ((annealed.values - exact).abs() < 5 * annealed.errors + 0.05).all()


@pytest.mark.parametrize("name", PRIORS)
def test_prior_is_scored_in_the_weights(name):
    lvm, x = Noisy(PRIORS[name]()), torch.randn(5, 2)
    drawn = vilvm.sample(lvm, 7)
    assert drawn["z"].shape == (7, 2)
    torch.manual_seed(3)
    weights = vilvm.log_weights(lvm, x, 100)
    torch.manual_seed(3)
    z = vilvm.posterior(lvm, x, 100)["z"]
    by_hand = lvm.prior(lvm.encode).log_prob(z)
    torch.testing.assert_close(
        weights.log_priors["z"], by_hand.to(weights.log_priors["z"])
    )


@pytest.mark.parametrize("name", PRIORS)
def test_model_can_be_copied_after_training(name):
    lvm, x = Noisy(PRIORS[name]()), torch.randn(5, 2)
    vilvm.fit(lvm, x, steps=2)
    for other in (copy.deepcopy(lvm), pickle.loads(pickle.dumps(lvm))):
        torch.manual_seed(0)
        first = vilvm.log_weights(lvm, x, 3).log_weight
        torch.manual_seed(0)
        assert torch.equal(vilvm.log_weights(other, x, 3).log_weight, first)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_model_keeps_the_contract(name):
    assert check_lvm(lambda: (Noisy(PRIORS[name]()), torch.randn(5, 2))) == "vectorised"


@pytest.mark.slow
@pytest.mark.parametrize("head", [normal, FlowGuide(3, context_dim=2, hidden=(8,))])
def test_vae_keeps_the_contract(head):
    check_lvm(
        lambda: (vae(torch.rand(4, 6), copy.deepcopy(head)), torch.rand(5, 6).round())
    )


@pytest.mark.slow
def test_compiled_training_improves_the_bound():
    lvm, x = Noisy(PRIORS["vamp"]()), 2 * torch.randn(64, 2)
    before = vilvm.evaluate(lvm, x, num_samples=50).bounds["elbo"].mean
    vilvm.fit(lvm, x, steps=200, batch_size=32, compile=True)
    assert vilvm.evaluate(lvm, x, num_samples=50).bounds["elbo"].mean > before + 0.2


def test_fitted_prior_can_stand_in_a_model():
    x = torch.rand(30, 6).round()
    lvm = VAE(6, 3)
    lvm.prior = fit_prior(lvm, x, "full")
    z = torch.randn(4, 5, 3)
    log_prior = lvm.prior.distribution().log_prob(z)
    torch.testing.assert_close(lvm.prior_of_z().log_prob(z), log_prior)
