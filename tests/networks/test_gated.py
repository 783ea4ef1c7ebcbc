"""Gated layers."""

import torch

from vilvm.models.vae import VAE
from vilvm.networks import GatedLinear, gated_mlp


def test_gated_layer_is_a_product_with_a_gate():
    layer, x = GatedLinear(3, 2), torch.randn(4, 5, 3)
    h, gate = (x @ layer.both.weight.T + layer.both.bias).split(2, dim=-1)
    torch.testing.assert_close(layer(x), h * gate.sigmoid())


def test_gated_perceptron_ends_in_an_affine_map():
    network = gated_mlp(6, (8, 7), 4)
    assert [type(layer) for layer in network] == [
        GatedLinear,
        GatedLinear,
        torch.nn.Linear,
    ]
    assert network(torch.zeros(2, 5, 6)).shape == (2, 5, 4)


def test_vae_takes_a_gated_network():
    lvm = VAE(6, 3, encoder_hidden=(8,), decoder_hidden=(9,), network=gated_mlp)
    assert [len(n) for n in (lvm.encoder, lvm.decoder)] == [2, 2]
    assert lvm.decoder[0].both.out_features == 18
