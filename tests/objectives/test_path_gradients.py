"""DReG and STL: unbiased, without noise at the posterior, and a signal that grows with k.

The statistical tests compare some 130 numbers at |t| < 7 with at least 19 degrees of freedom, and
fail by chance about once in 5,000 runs.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from tests.objectives.linear_gaussian import (
    factor_analysis,
    gradients,
    t_scores,
    two_layers,
)
from vilvm._runtime.random import seeded
from vilvm.diagnostics import gradient_snr
from vilvm.lvm import ContractError
from vilvm.objectives import IWAE, STL, DReG

PAIRS = {"one latent": factor_analysis, "two latents": two_layers}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_dreg_has_the_mean_gradient_of_iwae(make):
    lvm, x = make()
    plain = gradients(IWAE(3, max_plate_nesting=2), lvm, x)
    for vectorised in (True, False):
        objective = DReG(3, vectorised, 1 + vectorised)
        double = gradients(objective, lvm, x, seed=1)
        assert t_scores(plain, double).abs().max() < 7


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_stl_has_the_mean_gradient_of_the_elbo(make):
    lvm, x = make()
    plain = gradients(Trace_ELBO(), lvm, x)
    for particles in (1, 3):
        path = gradients(STL(particles), lvm, x, seed=1)
        assert t_scores(plain, path).abs().max() < 7


@pytest.mark.parametrize("objective", [STL(2), DReG(4)])
@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_exact_guide_has_no_gradient_noise(objective, make):
    lvm, x = make(exact=True)
    loss = objective.differentiable_loss(lvm.model, lvm.guide, x)
    loss.backward()
    of_guide = {"V", "unconstrained_L", "m", "s", "c", "t"}
    for name, p in lvm.named_parameters():
        if name in of_guide:
            assert p.grad.abs().max() < 1e-6, name


def test_path_gradient_equals_the_closed_form():
    # q = N(m, s²), p(z) = N(0, 1), x ~ N(z, 1): at z the slope of log w is x − 2z + (z − m)/s²
    lvm, x = Conjugate(), torch.tensor([0.7])
    with seeded(0):
        STL(1, True, 1).differentiable_loss(lvm.model, lvm.guide, x).backward()
    with seeded(0):
        noise = torch.randn(1)
    z = 0.2 + 0.5 * noise
    slope = x - 2 * z + (z - 0.2) / 0.25
    torch.testing.assert_close(lvm.m.grad, -slope[0])
    torch.testing.assert_close(lvm.s.grad, -(slope * noise)[0])


class Conjugate(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.2))
        self.s = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m, self.s).expand([len(x)]))


def test_dreg_gains_signal_with_k_where_iwae_loses():
    lvm, x = factor_analysis(num_data=8, exact=True)
    with torch.no_grad(), seeded(0):
        lvm.V.add_(0.2 * torch.randn_like(lvm.V))
        lvm.unconstrained_L.add_(0.3)
    objectives = {
        f"{kind.__name__} {k}": kind(k, max_plate_nesting=2)
        for kind in (IWAE, DReG)
        for k in (2, 128)
    }
    groups = {"guide": ["V", "unconstrained_L"]}
    found = gradient_snr(lvm, x, objectives, groups=groups, num_draws=144).groups
    snr = {name: value["guide"] for name, value in found.items()}
    for kind, low, high in (("DReG", 2, 128), ("IWAE", 128, 2)):
        less, more = snr[f"{kind} {low}"], snr[f"{kind} {high}"]
        assert more.snr - less.snr > 4 * (more.se**2 + less.se**2) ** 0.5


def test_noise_outside_the_guides_sites_is_refused():
    lvm, x = two_layers()

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = torch.nn.functional.dropout(lvm.m * x, 0.5)
            z1 = pyro.sample("z1", dist.Normal(mean, lvm.s))
            pyro.sample("z2", dist.Normal(lvm.c * z1, lvm.t))

    with pytest.raises(ContractError, match="second run of the guide"):
        STL().differentiable_loss(lvm.model, guide, x)


def test_flow_guides_pass_the_path():
    flow = dist.transforms.affine_autoregressive(2, hidden_dims=[4])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        base = dist.Normal(x, 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    lvm = nn.Module()
    lvm.flow, lvm.model, lvm.guide = flow, model, guide
    x = torch.tensor([[0.5, -1.0]])
    plain = gradients(Trace_ELBO(), lvm, x)
    path = gradients(STL(), lvm, x, seed=1)
    assert t_scores(plain, path).abs().max() < 7
