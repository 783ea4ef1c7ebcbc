"""The mixture of diagonal Gaussians, compared with torch's."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from vilvm.distributions import NormalMixture


def both(spread=1.0):
    """The mixture and torch's, in float64."""
    logits, locs = torch.randn(4).double(), spread * torch.randn(4, 3).double()
    scales = (-spread * torch.rand(4, 3).double()).exp()
    theirs = dist.MixtureSameFamily(
        dist.Categorical(logits=logits), dist.Normal(locs, scales).to_event(1)
    )
    return NormalMixture(logits, locs, scales), theirs


def test_density_and_moments_equal_those_of_torch():
    ours, theirs = both()
    z = 2 * torch.randn(5, 6, 3).double()
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


def test_narrow_components_lose_no_digits():
    """Means of 10 and scales down to e⁻¹⁰, where the exponent is a difference of terms of 10¹⁰."""
    ours, theirs = both(spread=10.0)
    single = NormalMixture(*(p.float() for p in (ours.logits, ours.locs, ours.scales)))
    z = single.sample((200,))
    exact = NormalMixture(
        *(p.double() for p in (single.logits, single.locs, single.scales))
    )
    torch.testing.assert_close(
        single.log_prob(z).double(), exact.log_prob(z.double()), rtol=1e-6, atol=1e-5
    )
    theirs = dist.MixtureSameFamily(
        dist.Categorical(logits=exact.logits),
        dist.Normal(exact.locs, exact.scales).to_event(1),
    )
    torch.testing.assert_close(
        exact.log_prob(z.double()), theirs.log_prob(z.double()), rtol=0, atol=1e-4
    )


def test_gradients_equal_those_of_torch():
    (ours, theirs), z = both(), torch.randn(5, 3).double()
    z.requires_grad_()
    (
        ours.locs.requires_grad_(),
        ours.scales.requires_grad_(),
        ours.logits.requires_grad_(),
    )
    wanted = [z, ours.locs, ours.scales, ours.logits]
    theirs = dist.MixtureSameFamily(
        dist.Categorical(logits=ours.logits),
        dist.Normal(ours.locs, ours.scales).to_event(1),
    )
    pairs = zip(
        torch.autograd.grad(ours.log_prob(z).sum(), wanted),
        torch.autograd.grad(theirs.log_prob(z).sum(), wanted),
        strict=True,
    )
    for mine, other in pairs:
        torch.testing.assert_close(mine, other)


def test_draws_have_the_mixtures_moments():
    """5 standard errors of 6 numbers: a false alarm in 300,000 runs."""
    ours, _ = both()
    drawn = ours.sample((20_000,))
    for power, exact in ((1, ours.mean), (2, ours.variance + ours.mean.square())):
        values = drawn**power
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - exact).abs() < 5 * error).all()


def test_plates_give_it_a_batch_shape():
    ours, _ = both()
    with pyro.plate("data", 5):
        assert pyro.sample("z", ours).shape == (5, 3)
    assert ours.expand((2, 5)).log_prob(torch.zeros(3).double()).shape == (2, 5)


def test_values_that_are_no_vectors_are_refused():
    ours, _ = both()
    with pytest.raises(ValueError, match="support"):
        ours.log_prob(torch.full((3,), float("nan")).double())
