"""Signal-to-noise ratios of gradients: closed forms, and estimators whose order is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import vilvm
from vilvm.diagnostics.finding import Severity
from vilvm.diagnostics.gradient_snr import gradient_snr
from vilvm.lvm import ContractError
from vilvm.models.ppca import PPCA


class Conjugate(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), q = N(m, ½).

    A draw of the loss's gradient in m is Σ (2 m − x + ε), with ε ~ N(0, 1) for each datum.
    """

    def __init__(self, m=0.0):
        super().__init__()
        self.m = nn.Parameter(torch.tensor(m))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m.expand(len(x)), 0.5))


class IWAE:
    def __init__(self, samples):
        self.samples = samples

    def differentiable_loss(self, model, guide, x):
        weights = vilvm.log_weights(
            vilvm.Pair(model, guide), x, self.samples, validate=False
        ).log_weight
        return -(weights.logsumexp(0) - math.log(self.samples)).sum()


class Noisy(Trace_ELBO):
    """A gradient with additional noise in one parameter."""

    def __init__(self, parameter, size):
        super().__init__()
        self.parameter, self.size = parameter, size

    def differentiable_loss(self, model, guide, x):
        noise = (self.parameter * torch.randn_like(self.parameter)).sum()
        return super().differentiable_loss(model, guide, x) + self.size * noise


@pytest.mark.parametrize("minibatch", [False, True])
def test_ratio_equals_the_closed_form(minibatch):
    x = torch.linspace(-1, 2, 40)
    size = 10 if minibatch else 40
    found = gradient_snr(
        Conjugate(), x, num_draws=300, batch_size=size, minibatch=minibatch
    ).groups["ELBO"]["m"]
    # Batches are drawn without replacement, so their mean has (1 − 10/40) of the data's variance
    # over 10.
    noise = size + (size * x.var().item() * (1 - size / 40) if minibatch else 0.0)
    expected = size * x.mean().item() / noise**0.5
    assert abs(found.snr - expected) < 5 * found.se
    assert found.se < 0.2 * expected
    assert found.elementwise == pytest.approx(
        found.snr, rel=0.1
    )  # equal for a single parameter, up to the correction of 1/s²
    assert found.p_value < 0.001


def test_unequal_noise_is_averaged_in_both_ratios():
    # Gradient of θ_p: c_p + noise of size n_p.
    lvm = Conjugate()
    lvm.extra = nn.Parameter(torch.zeros(3))
    c, n = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 4.0, 2.0])

    class Linear:
        def differentiable_loss(self, model, guide, x):
            return (lvm.extra * (c + n * torch.randn(3))).sum()

    found = gradient_snr(
        lvm, torch.randn(5), {"linear": Linear()}, num_draws=600
    ).groups["linear"]
    assert set(found) == {"extra"}
    assert abs(found["extra"].snr - (5 / 21) ** 0.5) < 5 * found["extra"].se
    assert found["extra"].elementwise == pytest.approx(((1 + 0.25) / 3) ** 0.5, rel=0.2)
    assert found["extra"].num_parameters == 3


def test_a_gradient_without_noise_has_an_infinite_ratio():
    found = gradient_snr(
        Conjugate(), torch.ones(5), {"mean field": TraceMeanField_ELBO()}, num_draws=24
    )
    assert found.groups["mean field"]["m"].snr < math.inf  # its likelihood is sampled

    class Flat:
        def differentiable_loss(self, model, guide, x):
            return 3 * model.__self__.m

    flat = gradient_snr(
        Conjugate(), torch.ones(5), {"flat": Flat()}, num_draws=24
    ).groups["flat"]["m"]
    assert (flat.snr, flat.elementwise, flat.se) == (math.inf, math.inf, 0.0)


@pytest.mark.slow
def test_no_false_alarm_at_the_optimum():
    x = torch.randn(20)
    at_rest = Conjugate(x.mean().item() / 2)
    found = [gradient_snr(at_rest, x, num_draws=24, seed=seed) for seed in range(30)]
    rejected = sum(f.groups["ELBO"]["m"].p_value <= 0.05 for f in found)
    assert rejected <= 30 * 0.05 + 5 * (30 * 0.05 * 0.95) ** 0.5
    assert not any(f.drowned for f in found)


@pytest.mark.slow
def test_importance_samples_drown_encoder_and_help_decoder():
    x = torch.randn(200, 3) @ torch.randn(3, 6) + 0.7 * torch.randn(200, 6)
    lvm = PPCA(6, 2).maximise(x)
    # The theoretical rates assume small variances of the weights, so start near the optimum.
    with torch.no_grad():
        for p in lvm.parameters():
            p.add_(0.01 * torch.randn_like(p))
    sides = {"encoder": ["V", "log_s"], "decoder": ["W", "b", "log_sigma"]}
    found = gradient_snr(
        lvm, x, {"1": IWAE(1), "64": IWAE(64)}, groups=sides, batch_size=200
    ).groups
    one, many = found["1"], found["64"]
    assert (
        many["encoder"].snr + 5 * many["encoder"].se
        < one["encoder"].snr - 5 * one["encoder"].se
    )
    assert many["decoder"].snr > one["decoder"].snr


def test_only_drowned_groups_are_named():
    x = torch.randn(40, 30) * 2
    lvm = PPCA(30, 10)
    sound = gradient_snr(lvm, x, num_draws=24)
    assert not sound.drowned
    assert sound.finding.severity == Severity.OK
    gradient = torch.autograd.grad(
        Trace_ELBO(10, vectorize_particles=False).differentiable_loss(
            lvm.model, lvm.guide, x
        ),
        lvm.V,
    )[0]
    # The SNR over the 300 parameters of V is about 0.06.
    noise = gradient.norm().item() / 300**0.5 / 0.06
    found = gradient_snr(lvm, x, {"noisy": Noisy(lvm.V, noise)}, num_draws=400)
    assert found.drowned == [("noisy", "V")]
    assert found.finding.severity == Severity.WARNING
    assert "'V' under noisy" in found.finding.verdict


def test_model_is_not_changed():
    lvm = Conjugate().train()
    lvm.m.grad = torch.tensor(7.0)
    before = torch.get_rng_state()
    first, second = (
        gradient_snr(lvm, torch.ones(5), num_draws=24, seed=3) for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert lvm.m.grad.item() == 7.0
    assert lvm.training
    assert first == second


def test_works_without_differentiable_loss_and_for_pairs():
    def guide(x):
        m = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(m, 0.5))

    found = gradient_snr(
        vilvm.Pair(Conjugate().model, guide),
        torch.ones(5),
        {"Rényi": RenyiELBO(num_particles=2)},
        num_draws=24,
    )
    assert set(found.groups["Rényi"]) == {"m"}


def test_bad_arguments_are_refused():
    x = torch.ones(5)
    with pytest.raises(ValueError, match="at least 24"):
        gradient_snr(Conjugate(), x, num_draws=10)
    with pytest.raises(ValueError, match="holds no parameter"):
        gradient_snr(Conjugate(), x, groups={"encoder": ["encoder"]}, num_draws=24)
    with pytest.raises(ValueError, match="false_alarm"):
        gradient_snr(Conjugate(), x, num_draws=24, false_alarm=0.0)
    lvm = Conjugate()
    lvm.m.requires_grad_(False)
    with pytest.raises(ContractError, match="no objective gives a gradient"):
        gradient_snr(lvm, x, num_draws=24)
