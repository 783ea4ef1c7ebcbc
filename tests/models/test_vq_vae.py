"""The VQ-VAE: its bound by enumeration, its rate, its gradients, and its prior of codes."""

import itertools

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.nn.functional import cross_entropy

import vilvm
from vilvm.evaluation import Schedule, ais, compare, reconstruct
from vilvm.lvm import ContractError
from vilvm.models.vq_vae import VQVAE, CodePrior, Codes, tiny


def every_code(num_codes, codebook_size):
    values = itertools.product(range(codebook_size), repeat=num_codes)
    return torch.tensor(list(values))


def random():
    torch.manual_seed(0)
    lvm, x = tiny()
    torch.nn.init.normal_(lvm.prior.position)
    return lvm, x


def test_elbo_is_one_term_of_the_sum_over_codes():
    lvm, x = random()
    k = every_code(3, 2)
    with torch.no_grad():
        joint = lvm.decode(lvm.codebook[k].expand(5, -1, -1, -1)).log_prob(x[:, None])
        joint = joint + Codes(lvm.prior).log_prob(k)
        chosen = lvm.codes(x) @ torch.tensor([4, 2, 1])
    found = vilvm.evaluate(lvm, x)
    elbo = found.bounds["elbo"].values
    expected = joint[torch.arange(5), chosen].double()
    torch.testing.assert_close(elbo, expected, rtol=1e-5, atol=1e-5)
    assert (elbo < joint.logsumexp(-1)).all()
    torch.testing.assert_close(elbo, -(found.rate.values + found.distortion.values))


def test_weights_of_all_samples_are_equal():
    lvm, x = random()
    found = vilvm.evaluate(lvm, x, num_samples=5000)
    bound = found.bounds["iwae"]
    torch.testing.assert_close(bound.values, found.bounds["elbo"].values)
    assert (bound.errors < 1e-6).all()
    assert found.num_samples == found.protocol["num_samples"] == 5000
    torch.testing.assert_close(found.ess, torch.full((5,), 5000.0).double())


def test_rate_is_the_cross_entropy_of_the_codes():
    torch.manual_seed(0)
    lvm, x = VQVAE(6, 3, codebook_size=4, code_dim=2, hidden=(8,)), torch.rand(9, 6)
    torch.nn.init.normal_(lvm.prior.position)
    logits, k = lvm.prior.position.detach(), lvm.codes(x.round())
    by_hand = [
        cross_entropy(logits[m].expand(9, 4), k[:, m], reduction="none")
        for m in range(3)
    ]
    rate = vilvm.evaluate(lvm, x.round()).rate.values
    expected = torch.stack(by_hand).sum(0).double()
    torch.testing.assert_close(rate, expected, rtol=1e-5, atol=1e-5)


def test_encoder_gets_the_gradient_at_the_quantised_value():
    """Its last bias sums the gradients of its output over the data."""
    lvm, x = random()
    loss = Trace_ELBO().differentiable_loss(lvm.model, lvm.guide, x)
    found = torch.autograd.grad(loss, lvm.encoder[-1].bias)[0]
    encoded = lvm.encode(x).detach()
    z = lvm.codebook[lvm.nearest(encoded)].detach().requires_grad_()
    at_z = torch.autograd.grad(-lvm.decode(z).log_prob(x).sum(), z)[0]
    commitment = 2 * lvm.commitment * (encoded - z.detach())
    torch.testing.assert_close(found, (at_z + commitment).sum(0).flatten())


def test_codebook_gets_the_gradient_of_the_distance():
    lvm, x = random()
    loss = Trace_ELBO().differentiable_loss(lvm.model, lvm.guide, x)
    found = torch.autograd.grad(loss, lvm.codebook)[0]
    encoded, expected = lvm.encode(x).detach(), torch.zeros(2, 2)
    for vector, k in zip(encoded.flatten(0, 1), lvm.codes(x).flatten(), strict=True):
        expected[k] += 2 * (lvm.codebook[k].detach() - vector)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("memory", [0, 1, 2])
def test_prior_of_codes_sums_to_one(memory):
    prior = CodePrior(3, 2, memory)
    torch.nn.init.normal_(prior.position)
    p = Codes(prior).log_prob(every_code(3, 2)).exp()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))


def test_prior_remembers_the_codes_before():
    prior, k = CodePrior(5, 3, 2), torch.zeros(5).long()
    changed = k.clone()
    changed[1] = 2
    moved = (prior(k) != prior(changed)).any(-1)
    assert moved.tolist() == [False, False, True, True, False]


def test_draws_of_codes_have_their_probabilities():
    """|z| < 5 for 8 values: fails once in 200,000 runs."""
    prior, k = CodePrior(3, 2, 1), every_code(3, 2)
    torch.nn.init.normal_(prior.position)
    drawn = Codes(prior).sample((4000,)) @ torch.tensor([4, 2, 1])
    p = Codes(prior).log_prob(k).exp().detach()
    error = (p * (1 - p) / 4000).sqrt()
    assert ((drawn.bincount(minlength=8) / 4000 - p).abs() < 5 * error).all()


def test_start_puts_the_codebook_on_encoded_data():
    lvm, x = VQVAE(6, 3, codebook_size=4, hidden=(8,)), torch.rand(9, 6).round()
    lvm.start_at(x)
    distances = torch.cdist(lvm.codebook, lvm.encode(x).flatten(0, 1))
    assert (distances.amin(-1) < 1e-3).all()


def test_ledger_has_a_row_with_a_rate_and_draws():
    lvm, x = random()
    row = compare({"VQ-VAE": lvm}, x, num_samples=50, num_draws=0)["VQ-VAE"]
    assert row.protocol.bound == "iwae"
    assert row.evaluation.rate is not None
    assert vilvm.sample(lvm, 7)["x"].shape == (7, 6)
    assert reconstruct(lvm, x).shape == x.shape


def test_equal_weights_show_no_gap():
    with pytest.raises(ContractError, match="all its probability on one point"):
        vilvm.diagnostics.pareto_k(*random())


def test_chains_have_nothing_to_move():
    with pytest.raises(ContractError, match="draws no latent at random"):
        ais(*random(), Schedule(num_chains=2, num_temperatures=2))
