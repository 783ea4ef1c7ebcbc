"""The two-level VAE, compared with log-weights by hand."""

import pytest
import torch
from torch.distributions import Bernoulli, Normal

import vilvm
from vilvm.models.top_down_vae import TopDownVAE, tiny
from vilvm.priors import VampPrior
from vilvm.testing import check_lvm


def log_normal(z, out):
    mean, log_variance = out.chunk(2, -1)
    return Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1)


def with_vamp_prior():
    x = torch.rand(5, 6).round()
    return TopDownVAE(6, latent_dims=(3, 2), hidden=8, prior=VampPrior(x[:4])), x


@pytest.mark.parametrize("vamp", [False, True])
def test_log_weights_equal_those_by_hand(vamp):
    lvm, x = with_vamp_prior() if vamp else tiny()
    torch.manual_seed(3)
    found = vilvm.log_weights(lvm, x, 10).log_weight
    torch.manual_seed(3)
    z = vilvm.posterior(lvm, x, 10)
    z1, z2 = z["z1"], z["z2"]
    log_p = Normal(0.0, 1.0).log_prob(z2).sum(-1)
    if vamp:
        each = [log_normal(z2, lvm.encoder2(u)) for u in lvm.prior.pseudo_inputs]
        log_p = torch.stack(each).exp().mean(0).log()
    log_p = log_p + log_normal(z1, lvm.decoder1(z2))
    log_p = log_p + Bernoulli(logits=lvm.decoder(z1, z2)).log_prob(x).sum(-1)
    log_q = log_normal(z2, lvm.encoder2(x)) + log_normal(z1, lvm.encoder1(x, z2))
    torch.testing.assert_close(
        found.double(), (log_p - log_q).double(), rtol=1e-4, atol=1e-4
    )


def test_decoder_reads_both_latents():
    lvm, _ = tiny()
    z1, z2 = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)
    lvm.decode(z1, z2).mean.sum().backward()
    assert z1.grad.all()
    assert z2.grad.all()


@pytest.mark.slow
def test_vamp_prior_keeps_the_contract():
    assert check_lvm(with_vamp_prior) == "vectorised"


def test_start_at_puts_the_mean_into_the_decoder():
    (lvm, _), mean = tiny(), torch.linspace(0.1, 0.9, 6)
    with torch.no_grad():
        lvm.decoder.both[-1].weight.zero_()
    found = lvm.start_at(mean).decode(torch.zeros(3), torch.zeros(2)).mean
    torch.testing.assert_close(found, mean)
