"""The prior as guide: the weights are the likelihoods, and the evidence has a closed form."""

import torch

import vilvm
from vilvm.models.ppca import PPCA
from vilvm.wrappers import with_prior_guide


def test_weights_are_the_likelihoods():
    lvm = with_prior_guide(PPCA(4, 2))
    weights = vilvm.log_weights(lvm, torch.randn(5, 4), 7)
    torch.testing.assert_close(weights.log_weight, weights.log_likelihood)
    assert weights.latents["z"].shape == (7, 5, 2)


def test_bound_equals_the_evidence_in_two_dimensions():
    torch.manual_seed(0)
    model = PPCA(4, 2)
    x = torch.randn(5, 4)
    bound = vilvm.evaluate(with_prior_guide(model), x, num_samples=20_000).bounds[
        "iwae"
    ]
    truth = model.exact_log_evidence(x).detach().double()
    assert ((bound.values - truth) / bound.errors).abs().max() < 5
