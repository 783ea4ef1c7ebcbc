"""The VAE: its likelihoods, its training, and plain Pyro's SVI on it."""

import pyro
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

import vilvm
from vilvm.models.vae import VAE, tiny
from vilvm.testing import check_lvm


def gaussian():
    lvm = VAE(
        data_dim=6,
        latent_dim=2,
        likelihood="gaussian",
        encoder_hidden=(8,),
        decoder_hidden=(8,),
    )
    return lvm, torch.rand(5, 6)


def test_gaussian_keeps_the_contract():
    check_lvm(gaussian)


def test_gaussian_has_two_heads():
    lvm, x = gaussian()
    fn = lvm.decode(torch.randn(5, 2))
    assert fn.mean.shape == fn.variance.shape == x.shape
    assert fn.variance.std() > 0


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_gaussian_is_finite_on_extreme_data(scale):
    lvm, x = gaussian()
    fitted = vilvm.fit(lvm, x * scale, steps=100)
    assert torch.isfinite(torch.tensor(fitted.history["elbo"])).all()


def test_start_at_puts_the_mean_into_the_decoder():
    lvm = VAE(data_dim=3, latent_dim=2)
    mean = torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad():
        lvm.decoder[-1].weight.zero_()
    torch.testing.assert_close(lvm.start_at(mean).decode(torch.zeros(2)).mean, mean)


@pytest.mark.parametrize(
    "objective", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, RenyiELBO]
)
def test_any_pyro_elbo_trains_it(objective):
    torch.manual_seed(0)
    x = torch.bernoulli(torch.tensor([0.9, 0.9, 0.1, 0.1, 0.5, 0.5]).expand(64, 6))
    lvm, _ = tiny()
    options = {"num_particles": 2} if objective is RenyiELBO else {}
    before = vilvm.evaluate(lvm, x, num_samples=50).bounds["elbo"].mean
    vilvm.fit(lvm, x, objective=objective(**options), steps=150)
    assert vilvm.evaluate(lvm, x, num_samples=50).bounds["elbo"].mean > before + 0.2
    assert len(pyro.get_param_store()) == 0


def test_plain_svi_trains_it():
    torch.manual_seed(0)
    x = torch.bernoulli(torch.tensor([0.9, 0.9, 0.1, 0.1, 0.5, 0.5]).expand(64, 6))
    lvm, _ = tiny()
    before = {n: p.clone() for n, p in lvm.named_parameters()}
    store = pyro.get_param_store()
    with store.scope():
        svi = SVI(lvm.model, lvm.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        losses = [svi.step(x) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert all(not torch.equal(before[n], p) for n, p in lvm.named_parameters())


def test_sigmoid_gaussian_has_means_between_zero_and_one():
    lvm = VAE(3, 2, "sigmoid_gaussian", (8,), (8,))
    with torch.no_grad():
        lvm.decoder[-1].weight.mul_(100)
    mean = lvm.decode(10 * torch.randn(20, 2)).mean
    assert (mean >= 0).all()
    assert (mean <= 1).all()
    with torch.no_grad():
        lvm.decoder[-1].weight.zero_()
    start = torch.tensor([0.2, 0.5, 0.9])
    torch.testing.assert_close(lvm.start_at(start).decode(torch.zeros(2)).mean, start)
