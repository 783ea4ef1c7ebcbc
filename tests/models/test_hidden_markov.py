"""The Bayesian hidden Markov model, compared with sums over all paths and long Stan runs."""

import itertools
import math

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch.distributions import Dirichlet, HalfNormal, Normal

import vilvm
from tests.models.exact import (
    check_marginals,
    check_one_loss_and_gradient,
    posteriordb_or_skip,
)
from vilvm.models.hidden_markov import (
    HiddenMarkov,
    Sequence,
    forward,
    objective,
    smooth,
)
from vilvm.training import one_cycle

THETA = {
    "transition": torch.tensor([[0.8, 0.2], [0.3, 0.7]]),
    "mu": torch.tensor([-1.0, 1.5]),
}


@pytest.fixture
def x():
    return torch.tensor([[-2.0, 0.1, 0.4, 1.7, 2.5], [0.3, -0.2, 0.6, 0.1, -1.0]])


def nothing(x):
    """A guide that samples nothing, for a model with given parameters."""


def chain(length, size, seed=0):
    """A random chain's start, transition and emission terms, in logarithms and float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((size,), (size, size), (length, size))
    logits = [
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    ]
    return logits[0].log_softmax(-1), logits[1].log_softmax(-1), logits[2]


def all_paths(start, transition, emission):
    """Every path of states and its log-probability together with the data."""
    length, size = emission.shape
    paths = list(itertools.product(range(size), repeat=length))
    scores = []
    for z in paths:
        score = start[z[0]] + emission[0, z[0]]
        for t in range(1, length):
            score = score + transition[z[t - 1], z[t]] + emission[t, z[t]]
        scores.append(score)
    return torch.tensor(paths), torch.stack(scores)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6])
def test_forward_and_smoothing_are_sums_over_all_paths(length, size):
    terms = chain(length, size)
    paths, scores = all_paths(*terms)
    torch.testing.assert_close(forward(*terms), scores.logsumexp(0))
    exact = torch.stack(
        [(scores.softmax(0)[:, None] * (paths == k)).sum(0) for k in range(size)], -1
    )
    torch.testing.assert_close(smooth(*terms), exact)


@pytest.mark.parametrize("length", [50, 101])
def test_long_chains_by_forward_backward_step_by_step(length):
    start, transition, emission = chain(length, 3)
    alpha, beta = [start + emission[0]], [torch.zeros(3, dtype=torch.float64)]
    for t in range(1, length):
        alpha.append((alpha[-1][:, None] + transition).logsumexp(0) + emission[t])
        beta.append((transition + emission[length - t] + beta[-1]).logsumexp(1))
    torch.testing.assert_close(
        forward(start, transition, emission), alpha[-1].logsumexp(0)
    )
    torch.testing.assert_close(
        smooth(start, transition, emission),
        (torch.stack(alpha) + torch.stack(beta[::-1])).softmax(-1),
    )


def test_forward_broadcasts():
    chains = [chain(5, 2, seed) for seed in range(3)]
    together = forward(*(torch.stack(parts) for parts in zip(*chains, strict=True)))
    torch.testing.assert_close(together, torch.stack([forward(*c) for c in chains]))
    one = chains[0]
    assert smooth(one[0], torch.stack([c[1] for c in chains]), one[2]).shape == (
        3,
        5,
        2,
    )


def test_impossible_transitions_have_probability_zero():
    start, transition = (
        torch.tensor([1.0, 0.0]).log(),
        torch.tensor([[0.5, 0.5], [0.0, 1.0]]).log(),
    )
    assert forward(start, transition, torch.zeros(4, 2)).item() == pytest.approx(
        0, abs=1e-6
    )
    torch.testing.assert_close(
        smooth(start, transition, torch.zeros(4, 2))[:, 0],
        torch.tensor([1.0, 0.5, 0.25, 0.125]),
    )


@pytest.mark.parametrize("noise", [1.0, None])
@pytest.mark.parametrize("marginal", [False, True])
def test_the_joint_density_given_the_parameters(x, noise, marginal):
    sigma = torch.tensor([0.8, 1.2]) if noise is None else torch.ones(2)
    given = THETA | ({"sigma": sigma} if noise is None else {})
    lvm = HiddenMarkov(2, noise=noise, start=[0.4, 0.6], marginal=marginal)
    loss = (Trace_ELBO() if marginal else objective()).loss(
        poutine.condition(lvm.model, data=given), nothing, x
    )
    prior = (
        Dirichlet(torch.ones(2)).log_prob(THETA["transition"]).sum()
        + math.log(2)
        + Normal(0.0, 2.0).log_prob(THETA["mu"]).sum()
    )
    prior = prior + (HalfNormal(2.0).log_prob(sigma).sum() if noise is None else 0.0)
    emission = Normal(THETA["mu"], sigma).log_prob(x[..., None])
    exact = [
        all_paths(torch.tensor([0.4, 0.6]).log(), THETA["transition"].log(), e)[
            1
        ].logsumexp(0)
        for e in emission
    ]
    torch.testing.assert_close(lvm.log_likelihood(x, given), torch.stack(exact))
    assert -loss == pytest.approx((prior + sum(exact)).item(), rel=1e-5)


def test_both_forms_have_one_loss_and_one_gradient(x):
    check_one_loss_and_gradient(
        HiddenMarkov(3), HiddenMarkov(3, marginal=True), objective(), x
    )


@pytest.mark.parametrize("marginal", [False, True])
def test_log_weights_have_exact_sequence_likelihoods(x, marginal):
    lvm = HiddenMarkov(2, marginal=marginal)
    weights = vilvm.log_weights(lvm, x, 20)
    exact = lvm.log_likelihood(x, weights.latents).double()
    torch.testing.assert_close(weights.log_likelihood, exact, rtol=1e-5, atol=1e-5)
    prior = sum(weights.log_priors[n].double() for n in ("transition", "mu"))
    torch.testing.assert_close(
        weights.log_weight,
        exact.sum(-1) + prior - weights.log_guide,
        rtol=1e-5,
        atol=1e-5,
    )


def test_viterbi_is_the_best_of_all_paths(x):
    lvm = HiddenMarkov(2, start=[0.4, 0.6])
    found = lvm.states(x, THETA)
    for row, best in zip(x, found, strict=True):
        emission = Normal(THETA["mu"], 1.0).log_prob(row[:, None])
        paths, scores = all_paths(lvm.start.log(), THETA["transition"].log(), emission)
        assert torch.equal(paths[scores.argmax()], best)


def test_path_draws_follow_the_path_posterior(x):
    lvm = HiddenMarkov(2, start=[0.4, 0.6])
    row, draws = x[1], 4000
    drawn = lvm.states(row.expand(draws, -1), THETA, temperature=1)
    paths, scores = all_paths(
        lvm.start.log(),
        THETA["transition"].log(),
        Normal(THETA["mu"], 1.0).log_prob(row[:, None]),
    )
    p = scores.softmax(0)
    count = (drawn[:, None] == paths).all(-1).float().mean(0)
    likely = p > 0.01  # for other paths a normal approximation of the count is poor
    assert ((count - p).abs() < 5 * (p * (1 - p) / draws).sqrt())[likely].all()
    gamma = lvm.smoothing(x, THETA)[1, :, 1]
    assert (
        (drawn.float().mean(0) - gamma).abs() < 5 * (gamma * (1 - gamma) / draws).sqrt()
    ).all()


def test_sequences_are_drawn_as_they_are_scored():
    # so small that the data identify the states
    start, sigma = torch.tensor([0.4, 0.6]), torch.full((2,), 0.01)
    fn, draws = (
        Sequence(start, THETA["transition"], THETA["mu"], sigma, length=3),
        10_000,
    )
    drawn = (fn.expand([draws]).sample() > 0).long()
    paths, scores = all_paths(start.log(), THETA["transition"].log(), torch.zeros(3, 2))
    p = scores.exp()
    count = (drawn[:, None] == paths).all(-1).float().mean(0)
    assert ((count - p).abs() < 5 * (p * (1 - p) / draws).sqrt()).all()
    assert fn.sample((4,)).shape == (4, 3)


def test_posterior_draws_and_the_median(x):
    lvm = HiddenMarkov(3, noise=None)
    given = vilvm.posterior(lvm, x, 7)
    assert lvm.log_likelihood(x, given).shape == (7, 2)
    gamma = lvm.smoothing(x, given)
    torch.testing.assert_close(gamma.sum(-1), torch.ones(7, 2, 5))
    torch.testing.assert_close(lvm.smoothing(x), lvm.smoothing(x, lvm.median()))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_states must be at least 2; got 1"):
        HiddenMarkov(1)
    with pytest.raises(ValueError, match="must be positive"):
        HiddenMarkov(2, noise=0.0)
    with pytest.raises(
        ValueError, match="start must be 2 probabilities that sum to one"
    ):
        HiddenMarkov(2, start=[0.5, 0.6])


def test_density_equals_posteriordbs_up_to_a_constant():
    """posteriordb gives each start state weight 1 instead of ½, and does not normalise the ordered
    prior.
    """
    reference = posteriordb_or_skip("hmm_example-hmm_example")
    y, draws = (
        reference.data["y"][None],
        {name: value.flatten() for name, value in reference.draws.items()},
    )
    lvm = HiddenMarkov(2, loc=[3.0, 10.0], scale=1.0, marginal=True).double()
    for i in range(0, 10_000, 2000):
        A = torch.stack(
            [torch.stack([draws[f"theta{k}[{j}]"][i] for j in (1, 2)]) for k in (1, 2)]
        ).double()
        mu = torch.stack([draws[f"mu[{k}]"][i] for k in (1, 2)]).double()
        A = A / A.sum(-1, keepdim=True)
        ours = -Trace_ELBO().loss(
            poutine.condition(lvm.model, data={"transition": A, "mu": mu}),
            nothing,
            y.double(),
        )
        alpha = Normal(mu, 1.0).log_prob(y[0, 0])
        for value in y[0, 1:]:
            alpha = (alpha[:, None] + A.log()).logsumexp(0) + Normal(mu, 1.0).log_prob(
                value
            )
        theirs = (
            alpha.logsumexp(0)
            + Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum()
        )
        order = Normal(0.0, 1.0).cdf(torch.tensor(7 / math.sqrt(2))).log()
        assert ours == pytest.approx((theirs - math.log(2) - order).item(), abs=1e-4)


@pytest.mark.slow
def test_the_posterior_of_posteriordb():
    reference = posteriordb_or_skip("hmm_example-hmm_example")
    y = reference.data["y"][None]
    lvm = HiddenMarkov(2, loc=[3.0, 10.0], scale=1.0, marginal=True)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    vilvm.fit(lvm, y, objective=elbo, steps=3000, **one_cycle(0.05, 3000))
    with torch.no_grad():
        drawn = vilvm.posterior(lvm, y, 20_000)
    ours = {f"mu[{k + 1}]": drawn["mu"][:, k] for k in range(2)} | {
        f"theta{k + 1}[1]": drawn["transition"][:, k, 0] for k in range(2)
    }
    check_marginals(ours, reference)
