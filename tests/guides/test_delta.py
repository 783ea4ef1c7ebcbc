"""The degenerate guide: a distortion in closed form, and no bound."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.guides import delta, flat_prior
from vilvm.testing import check_lvm


class Halving(torch.nn.Module):
    """The encoder is z = slope x, the decoder x = z + N(0, 1)."""

    def __init__(self, proper=False):
        super().__init__()
        self.slope, self.proper = torch.nn.Parameter(torch.tensor(0.5)), proper

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z",
                dist.Normal(torch.zeros(2), 1.0).to_event(1)
                if self.proper
                else flat_prior(2),
            )
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", delta(self.slope * x))


def test_degenerate_pair_keeps_the_contract():
    check_lvm(lambda: (Halving(), torch.randn(5, 2)))


def test_the_loss_is_that_of_the_reconstruction():
    lvm, x = Halving(), torch.randn(7, 2)
    truth = dist.Normal(x / 2, 1.0).log_prob(x).sum(-1)
    loss = pyro.infer.Trace_ELBO().differentiable_loss(lvm.model, lvm.guide, x)
    torch.testing.assert_close(loss, -truth.sum())
    result = vilvm.evaluate(lvm, x)
    torch.testing.assert_close(
        result.distortion.values, -truth.double().detach(), rtol=1e-6, atol=1e-6
    )
    assert (result.distortion.errors == 0).all()
    assert result.num_samples == 2  # of equal draws


@pytest.mark.parametrize("proper", [True, False])
def test_there_is_a_distortion_and_no_bound(proper):
    result = vilvm.evaluate(Halving(proper), torch.randn(7, 2))
    assert result.rate is result.ess is None
    assert result.to_dict()["bounds"] == {}
    with pytest.raises(
        KeyError,
        match=r"puts latent 'z' on one point \(a Delta\).*give it a proper prior",
    ):
        result.bounds["elbo"]


def test_point_of_discrete_latent_has_a_bound():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.25))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Delta((x > 0.5).float()))

    x = torch.tensor([0.0, 1.0])
    result = vilvm.evaluate(vilvm.Pair(model, guide), x, num_samples=3)
    truth = torch.tensor([0.75, 0.25]).log() + dist.Normal(0.0, 1.0).log_prob(
        torch.tensor(0.0)
    )
    torch.testing.assert_close(
        result.bounds["elbo"].values, truth.double(), rtol=1e-6, atol=1e-6
    )


def test_training_descends_the_quadratic_loss():
    lvm, x = Halving(), torch.randn(50, 2)
    fitted = vilvm.fit(
        lvm, x, steps=400, optimizer=lambda p: torch.optim.Adam(p, lr=0.02)
    )
    assert lvm.slope.item() == pytest.approx(1, abs=1e-2)
    assert fitted.history["rate"].tolist() == [0] * len(fitted.history)
