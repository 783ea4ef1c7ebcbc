"""The conditional VAE: each of its networks reads the condition, and its bound is of p(x | c)."""

import math

import pyro.distributions as dist
import torch

import vilvm
from vilvm.models.conditional_vae import ConditionalVAE, tiny


def test_every_network_reads_every_entry_of_the_condition():
    torch.manual_seed(0)
    lvm, (c, x) = tiny()
    c.requires_grad_()
    z = torch.randn(5, 2)
    outputs = {
        "prior": lvm.prior(c),
        "encoder": lvm.encoder(torch.cat([x, c], -1)),
        "decoder": lvm.decode(z, c).logits,
    }
    for name, out in outputs.items():
        slope = torch.autograd.grad(out.square().sum(), c)[0]
        assert (slope != 0).all(), f"{name} ignores part of the condition"


def test_another_condition_has_another_bound():
    lvm, (c, x) = tiny()
    first = vilvm.evaluate(lvm, (c, x), num_samples=50).bounds["iwae"]
    second = vilvm.evaluate(lvm, (c.flip(0), x), num_samples=50).bounds["iwae"]
    assert not torch.equal(first.values, second.values)


def test_bound_is_that_of_the_conditional_density():
    """One latent, by a fine sum over z; |z| < 5 for 5 data: fails once in 300,000 runs."""
    torch.manual_seed(0)
    lvm = ConditionalVAE(6, 3, latent_dim=1, hidden=(8,), prior_hidden=(8,))
    c, x = torch.randn(5, 3), torch.rand(5, 6).round()
    z = torch.linspace(-12, 12, 5001)[:, None, None].expand(-1, 5, 1)
    with torch.no_grad():
        mean, log_variance = lvm.prior(c).chunk(2, -1)
        prior = dist.Normal(mean, (log_variance / 2).exp()).log_prob(z).squeeze(-1)
        joint = prior + lvm.decode(z, c).log_prob(x)
    exact = (joint.double() + math.log(24 / 5000)).logsumexp(0)
    found = vilvm.evaluate(lvm, (c, x), num_samples=5000).bounds["iwae"]
    assert ((found.values - exact).abs() < 5 * found.errors + 1e-4).all()


def test_generated_data_follow_the_condition():
    lvm, (c, _) = tiny()
    drawn = lvm.generate(c, 3000)
    assert drawn.shape == (3000, 5, 6)
    assert (drawn.mean(0).std(0) > 0).all()
