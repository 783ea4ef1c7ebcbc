"""The closed forms of the two modes, compared with draws and integration."""

import torch

from vilvm.data.datasets import TwoModes, two_modes


def test_density_integrates_to_one_with_its_mean():
    first = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    for second in (-1.0, 0.0, 0.7):
        at = torch.full_like(first, second)
        density = TwoModes.log_prob(first, at).exp()
        assert abs(torch.trapezoid(density, first).item() - 1) < 1e-8
        assert (
            abs(torch.trapezoid(first * density, first) - TwoModes.mean(at[:1])).item()
            < 1e-8
        )
        assert (
            abs(
                torch.trapezoid(density[first > 0], first[first > 0])
                - TwoModes.upper(at[:1])
            ).item()
            < 1e-3
        )


def test_draws_have_the_conditional_mean():
    x = two_modes(20_000, seed=1).train.x
    residual = x[:, 0] - TwoModes.mean(x[:, 1])
    # E[(x₁ − E[x₁ | x₂]) f(x₂)] = 0
    for weight in (torch.ones(len(x)), x[:, 1], x[:, 1].square()):
        term = residual * weight
        assert abs(term.mean() / (term.std() / len(x) ** 0.5)) < 5
    upper = (x[:, 0] > 0).float() - TwoModes.upper(x[:, 1])
    assert abs(upper.mean() / (upper.std() / len(x) ** 0.5)) < 5


def test_splits_are_different_draws():
    data = two_modes(50, 50)
    assert [len(d) for d in data] == [50, 50, 50]
    assert not torch.equal(data.validation.x, data.test.x)
