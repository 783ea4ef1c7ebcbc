"""The ladder VAE, compared with log-weights by hand."""

import pytest
import torch
from torch.distributions import Bernoulli, Normal

import vilvm
from vilvm.guides import normal
from vilvm.models.ladder_vae import LadderVAE, product, tiny


def test_product_is_the_normalised_product_of_two_densities():
    first, second, z = (
        normal(torch.randn(6)),
        normal(torch.randn(6)),
        torch.randn(50, 3),
    )
    ratio = first.log_prob(z) + second.log_prob(z) - product(first, second).log_prob(z)
    torch.testing.assert_close(ratio, ratio[:1].expand(50), rtol=1e-4, atol=1e-4)


def log_normal(z, mean, variance):
    return Normal(mean, variance.sqrt()).log_prob(z).sum(-1)


def moments(out):
    mean, log_variance = out.chunk(2, -1)
    return mean, log_variance.exp()


def test_log_weights_equal_those_by_hand():
    lvm, x = LadderVAE(6, (3, 2), (8, 7)), torch.rand(5, 6).round()
    torch.manual_seed(3)
    found = vilvm.log_weights(lvm, x, 10).log_weight
    torch.manual_seed(3)
    z = vilvm.posterior(lvm, x, 10)
    z1, z2 = z["z1"], z["z2"]
    mean, variance = moments(lvm.downward[1](z2))
    log_p = Normal(0.0, 1.0).log_prob(z2).sum(-1) + log_normal(z1, mean, variance)
    log_p = log_p + Bernoulli(logits=lvm.downward[0](z1)).log_prob(x).sum(-1)
    d1 = lvm.upward[0](x)
    up1, up2 = (
        moments(lvm.estimates[0](d1)),
        moments(lvm.estimates[1](lvm.upward[1](d1))),
    )
    share = variance / (variance + up1[1])  # of the estimate in the mean
    q1 = share * up1[0] + (1 - share) * mean, share * up1[1]
    log_q = log_normal(z2, *up2) + log_normal(z1, *q1)
    torch.testing.assert_close(
        found.double(), (log_p - log_q).double(), rtol=1e-4, atol=1e-4
    )


def test_layer_that_the_data_do_not_inform_costs_no_divergence():
    lvm, x = tiny()
    with torch.no_grad():
        for head in lvm.estimates[:-1]:
            head.weight.zero_()
            head.bias.copy_(
                torch.tensor([0.0, 14.0]).repeat_interleave(len(head.bias) // 2)
            )
    weights = vilvm.log_weights(lvm, x, 50)
    for name in ("z1", "z2"):
        rate = weights.log_guides[name] - weights.log_priors[name]
        assert rate.abs().max() < 1e-3


def test_start_at_puts_the_mean_into_the_decoder():
    (lvm, _), mean = tiny(), torch.linspace(0.1, 0.9, 6)
    with torch.no_grad():
        lvm.downward[0][-1].weight.zero_()
    torch.testing.assert_close(lvm.start_at(mean).decode(torch.zeros(4)).mean, mean)


def test_hidden_sizes_are_given_for_each_latent():
    with pytest.raises(ValueError, match="each of the 2 latents; got 1"):
        LadderVAE(6, (3, 2), (8,))
