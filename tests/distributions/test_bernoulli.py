"""IndependentBernoulli is torch's Bernoulli, faster."""

import pytest
import torch
from torch.distributions import Bernoulli

from vilvm.distributions import IndependentBernoulli


@pytest.mark.parametrize("size", [1, 7, 113, 784])
@pytest.mark.parametrize("scale", [0.1, 5.0, 200.0])
def test_log_prob_and_gradient_are_torchs(size, scale):
    torch.manual_seed(0)
    logits = (torch.randn(3, 4, size, dtype=torch.float64) * scale).requires_grad_()
    x = torch.bernoulli(torch.full((4, size), 0.5, dtype=torch.float64))
    ours = IndependentBernoulli(logits).log_prob(x)
    theirs = Bernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(3, 4, dtype=torch.float64)
    grads = [torch.autograd.grad((v * weight).sum(), logits)[0] for v in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_large_logits_go_block_by_block():
    torch.manual_seed(0)
    logits, x = torch.randn(700, 10, 98), torch.bernoulli(torch.full((10, 98), 0.3))
    torch.testing.assert_close(
        IndependentBernoulli(logits).log_prob(x),
        Bernoulli(logits=logits).log_prob(x).sum(-1),
    )


@pytest.mark.parametrize(
    "shapes", [((3,), (5, 3)), ((2, 1, 3), (4, 3)), ((4, 3), (3,))]
)
def test_logits_and_values_broadcast(shapes):
    logits, value = torch.randn(shapes[0]), torch.rand(shapes[1]).round()
    logits.requires_grad_()
    pair = (
        IndependentBernoulli(logits).log_prob(value),
        Bernoulli(logits=logits).log_prob(value).sum(-1),
    )
    torch.testing.assert_close(*pair)
    gradients = [torch.autograd.grad(p.sum(), logits)[0] for p in pair]
    torch.testing.assert_close(*gradients)


def test_gradcheck():
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    x = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: IndependentBernoulli(a, validate_args=False).log_prob(b),
        (logits, x),
    )


def test_moments_and_draws():
    fn = IndependentBernoulli(torch.tensor([0.0, 2.0]))
    torch.manual_seed(0)
    drawn = fn.sample((4000,))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert ((drawn.mean(0) - fn.mean).abs() < 5 * (fn.variance / 4000).sqrt()).all()


def test_grey_values_are_refused():
    with pytest.raises(ValueError, match="support"):
        IndependentBernoulli(torch.zeros(2), validate_args=True).log_prob(
            torch.tensor([0.5, 1.0])
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_range(dtype):
    x = torch.zeros(784, dtype=dtype)
    assert IndependentBernoulli(x).log_prob(x).item() == pytest.approx(
        -784 * 0.6931, rel=1e-2
    )
