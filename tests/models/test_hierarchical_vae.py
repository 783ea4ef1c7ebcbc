"""The hierarchical VAE, compared with log-weights by hand."""

import pytest
import torch
from torch.distributions import Bernoulli, Normal

import vilvm
from vilvm.models.hierarchical_vae import HierarchicalVAE
from vilvm.networks import gated_mlp
from vilvm.testing import check_lvm


def three(**options):
    return HierarchicalVAE(6, (4, 3, 2), ((8,), (7,), (6,)), **options)


def log_normal(z, out):
    mean, log_variance = out.chunk(2, -1)
    return Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1)


def test_log_weights_equal_those_by_hand():
    lvm, x = three(), torch.rand(5, 6).round()
    torch.manual_seed(3)
    found = vilvm.log_weights(lvm, x, 10).log_weight
    torch.manual_seed(3)
    z = vilvm.posterior(lvm, x, 10)
    z1, z2, z3 = z["z1"], z["z2"], z["z3"]
    log_p = Normal(0.0, 1.0).log_prob(z3).sum(-1)
    log_p = (
        log_p
        + log_normal(z2, lvm.decoders[2](z3))
        + log_normal(z1, lvm.decoders[1](z2))
    )
    log_p = log_p + Bernoulli(logits=lvm.decoders[0](z1)).log_prob(x).sum(-1)
    log_q = log_normal(z1, lvm.encoders[0](x)) + log_normal(z2, lvm.encoders[1](z1))
    log_q = log_q + log_normal(z3, lvm.encoders[2](z2))
    torch.testing.assert_close(
        found.double(), (log_p - log_q).double(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_three_gated_layers_keep_the_contract():
    check_lvm(lambda: (three(network=gated_mlp), torch.rand(5, 6).round()))


def test_default_is_the_model_of_burda_et_al():
    lvm = HierarchicalVAE()
    sizes = [
        [m.out_features for m in n if hasattr(m, "out_features")] for n in lvm.encoders
    ]
    assert sizes == [[200, 200, 200], [100, 100, 100]]
    sizes = [
        [m.out_features for m in n if hasattr(m, "out_features")] for n in lvm.decoders
    ]
    assert sizes == [[200, 200, 784], [100, 100, 200]]


def test_start_at_puts_the_mean_into_the_decoder():
    lvm, mean = three(), torch.linspace(0.1, 0.9, 6)
    with torch.no_grad():
        lvm.decoders[0][-1].weight.zero_()
    torch.testing.assert_close(lvm.start_at(mean).decode(torch.zeros(4)).mean, mean)


def test_hidden_layers_are_given_for_each_latent():
    with pytest.raises(ValueError, match="each of the 2 latents; got 1 lists"):
        HierarchicalVAE(6, (3, 2), ((8,),))
