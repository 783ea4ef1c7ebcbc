"""A penalty trains the guide and changes no number."""

import pyro
import pyro.distributions as dist
import torch

import vilvm
from vilvm.guides import penalty


class Shrunk(torch.nn.Module):
    """A standard normal latent; the guide's mean is penalised."""

    def __init__(self, weight):
        super().__init__()
        self.mean, self.weight = torch.nn.Parameter(torch.tensor(2.0)), weight

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean, 1.0))
            if self.weight:
                penalty("shrink", self.weight * self.mean.square().expand(len(x)))


def gradient(lvm, x):
    torch.manual_seed(0)
    loss = pyro.infer.Trace_ELBO().differentiable_loss(lvm.model, lvm.guide, x)
    return loss.item(), torch.autograd.grad(loss, lvm.mean)[0]


def test_penalty_changes_the_gradient_alone():
    x = torch.randn(5)
    with_penalty, without = Shrunk(3.0), Shrunk(0.0)
    (loss, slope), (plain_loss, plain_slope) = (
        gradient(lvm, x) for lvm in (with_penalty, without)
    )
    assert loss == plain_loss
    torch.testing.assert_close(slope - plain_slope, torch.tensor(5 * 3.0 * 2 * 2.0))


def test_penalty_is_in_no_bound():
    x = torch.randn(5)
    first, second = (
        vilvm.evaluate(Shrunk(weight), x, num_samples=20) for weight in (3.0, 0.0)
    )
    assert torch.equal(first.bounds["iwae"].values, second.bounds["iwae"].values)
    assert torch.equal(first.rate.values, second.rate.values)
