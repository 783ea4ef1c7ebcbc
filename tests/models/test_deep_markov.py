"""The deep Markov model: padding changes nothing, and the Kalman filter bounds its evidence."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import vilvm
from vilvm.models.deep_markov import DeepMarkov, backwards, tiny
from vilvm.training import one_cycle

A = torch.tensor([[0.9, 0.4], [-0.4, 0.9]])
C = torch.tensor([[1.0, 0.0]])
Q, R = 0.5, 0.5  # deviations of transition and emission


class Linear(nn.Module):
    """N(matrix · z, scale² I)."""

    def __init__(self, matrix, scale):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.scale = scale

    def forward(self, z):
        return dist.Normal(z @ self.matrix.T, self.scale).to_event(1)


def linear_gaussian():
    """A deep Markov model with the transition and emission of a Kalman filter, from z_0 = 0."""
    lvm = DeepMarkov(1, 2, hidden=16)
    lvm.transition, lvm.emitter = Linear(A, Q), Linear(C, R)
    del lvm.first
    lvm.register_buffer("first", torch.zeros(2))
    return lvm


def linear_gaussian_data(count, longest, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator)
    z, steps = torch.zeros(count, 2), []
    for _ in range(longest):
        z = z @ A.T + Q * torch.randn(count, 2, generator=generator)
        steps.append(z @ C.T + R * torch.randn(count, 1, generator=generator))
    seen = torch.arange(longest) < lengths[:, None]
    return torch.stack(steps, 1) * seen[..., None], lengths


def kalman(x):
    """log p(x) of one sequence of shape (T, 1), by the Kalman filter, float64."""
    a, c = A.double(), C.double()
    mean, cov = torch.zeros(2).double(), torch.zeros(2, 2).double()
    total = 0.0
    for value in x.double():
        mean, cov = a @ mean, a @ cov @ a.T + Q**2 * torch.eye(2).double()
        residual, variance = value - c @ mean, c @ cov @ c.T + R**2
        total += dist.Normal(0.0, variance.sqrt()).log_prob(residual).sum().item()
        gain = cov @ c.T / variance
        mean, cov = mean + gain @ residual, cov - gain @ c @ cov
    return total


def joint_normal(x):
    """log p(x) of one sequence of shape (T, 1), from the covariance of its T numbers."""
    length = len(x)
    a, c = A.double(), C.double()
    powers = [torch.linalg.matrix_power(a, i) for i in range(length)]
    cov = torch.zeros(length, length).double()
    for s in range(length):
        for t in range(length):
            # both see the noise of every step up to the earlier of the two
            for k in range(min(s, t) + 1):
                cov[s, t] += Q**2 * (c @ powers[s - k] @ powers[t - k].T @ c.T).item()
    cov += R**2 * torch.eye(length).double()
    fn = dist.MultivariateNormal(torch.zeros(length).double(), cov)
    return fn.log_prob(x[:, 0].double()).item()


def log_weight_by_hand(lvm, x, z):
    """log p(x, z) − log q(z | x) of one unpadded sequence (n, D) at states (samples, n, d)."""
    r = lvm.recurrent(x.flip(0)[None])[0][0].flip(0)
    before, before_q, total = lvm.first, lvm.first_of_guide, 0.0
    for t in range(len(x)):
        total = total + lvm.transition(before).log_prob(z[:, t])
        total = total + lvm.emitter(z[:, t]).log_prob(x[t])
        total = total - lvm.combiner(before_q, r[t]).log_prob(z[:, t])
        before = before_q = z[:, t]
    return total


def test_backwards_reverses_sequences_and_keeps_padding():
    x = torch.tensor([[1, 2, 3, 9], [4, 9, 9, 9]])
    lengths = torch.tensor([3, 1])
    assert backwards(x, lengths).tolist() == [[3, 2, 1, 9], [4, 9, 9, 9]]
    three = torch.randn(2, 4, 5)
    assert torch.equal(backwards(backwards(three, lengths), lengths), three)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_padded_weights_are_those_of_each_sequence_alone(likelihood):
    lvm = DeepMarkov(2, 2, likelihood, hidden=8)
    x, lengths = torch.rand(5, 3, 2).round(), torch.tensor([3, 1, 2, 3, 2])
    weights = vilvm.log_weights(lvm, (x, lengths), 4)
    z = torch.stack([weights.latents[f"z_{t + 1}"] for t in range(3)], -2)
    for i, n in enumerate(lengths):
        exact = log_weight_by_hand(lvm, x[i, :n], z[:, i, :n])
        torch.testing.assert_close(weights.log_weight[:, i].float(), exact)


def test_values_of_padding_change_nothing():
    lvm, (x, lengths) = tiny()
    padding = torch.arange(3)[None, :, None] >= lengths[:, None, None]
    found = []
    for value in (0.0, 1e3):
        torch.manual_seed(1)
        batch = x.masked_fill(padding, value), lengths
        found.append(vilvm.log_weights(lvm, batch, 4).log_weight)
    assert torch.equal(*found)


def test_sequences_are_summed_up_from_their_ends():
    """q(z_t | z_{t−1}, x) must depend on x_t, …, x_T, and not on earlier data."""
    lvm, (x, lengths) = tiny()
    x.requires_grad_()
    states, _ = lvm.recurrent(backwards(x, lengths))
    backwards(states, lengths)[0, 1].sum().backward()
    assert (x.grad[0].abs().sum(-1) > 0).tolist() == [False, True, True]


def test_kalman_filter_is_the_joint_normal_density():
    x, lengths = linear_gaussian_data(4, 5, seed=0)
    for row, n in zip(x, lengths, strict=True):
        assert kalman(row[:n]) == pytest.approx(joint_normal(row[:n]), abs=1e-10)


def test_weights_average_to_the_evidence_of_kalman():
    """|z| < 5 for four data: fails once in 400,000 seeds."""
    torch.manual_seed(0)
    lvm, (x, lengths) = linear_gaussian(), linear_gaussian_data(4, 2, seed=0)
    with torch.no_grad():
        weight = vilvm.log_weights(lvm, (x, lengths), 20_000).log_weight.exp()
    exact = torch.tensor(
        [math.exp(kalman(s[:n])) for s, n in zip(x, lengths, strict=True)]
    )
    error = weight.std(0) / len(weight) ** 0.5
    assert ((weight.mean(0) - exact).abs() < 5 * error).all()


@pytest.mark.slow
def test_iwae_of_fitted_guide_is_below_kalman_and_close():
    """E[IWAE] ≤ log p(x): the mean over 100 data is above by 5 standard errors in one of 3.5
    million seeds.
    """
    lvm, test = linear_gaussian(), linear_gaussian_data(100, 6, seed=1)
    train = linear_gaussian_data(1000, 6, seed=2)
    vilvm.fit(lvm, train, steps=300, batch_size=100, **one_cycle(2e-2, 300))
    bounds = vilvm.evaluate(lvm, test, num_samples=200).bounds
    exact = torch.tensor([kalman(x[:n]) for x, n in zip(*test, strict=True)])
    for name, tolerance in (("elbo", 0.2), ("iwae", 0.02)):
        gap = exact - bounds[name].values
        error = bounds[name].errors.square().sum().sqrt() / len(gap)
        print(f"log p(x) − {name}: {gap.mean():.4f}, Monte Carlo error {error:.4f}")
        assert -5 * error < gap.mean() < tolerance + 5 * error


def test_unknown_likelihood_is_refused():
    with pytest.raises(ValueError, match="choose 'gaussian' or 'bernoulli'"):
        DeepMarkov(2, 2, "poisson")
