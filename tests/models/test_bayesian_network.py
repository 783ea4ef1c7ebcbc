"""Discrete Bayesian networks, compared with sums over all states and the exact posterior."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

import vilvm
from vilvm._runtime.random import seeded
from vilvm.lvm import ContractError
from vilvm.models.bayesian_network import (
    ASIA,
    SPRINKLER,
    BayesianNetwork,
    objective,
    tiny,
)
from vilvm.testing import check_lvm

THREE = {  # three states, and a node with three parents
    "a": ((), [0.2, 0.3, 0.5]),
    "d": (
        ("a", "b", "c"),
        np.random.default_rng(0).dirichlet([1.0, 1.0], (3, 2, 3)).tolist(),
    ),
    "b": (("a",), [[0.1, 0.9], [0.5, 0.5], [0.7, 0.3]]),
    "c": (("b",), [[0.2, 0.2, 0.6], [0.6, 0.3, 0.1]]),
}
CASES = [
    (SPRINKLER, ("wet",)),
    (ASIA, ("asia", "smoking", "xray", "dyspnoea")),
    (ASIA, ("cancer", "dyspnoea")),
    (THREE, ("c", "d")),
]


def every_state(lvm, nodes):
    """A batch of every combination of states of some nodes."""
    rows = torch.tensor(list(product(*(range(lvm.states[n]) for n in nodes))))
    return dict(zip(nodes, rows.T, strict=True))


def joint(network):
    """p of every full state, from the tables as given."""
    cards = {
        n: len(np.ravel(np.asarray(t)[(0,) * len(parents)]))
        for n, (parents, t) in network.items()
    }
    states = [
        dict(zip(network, s, strict=True))
        for s in product(*(range(cards[n]) for n in network))
    ]
    ps = [
        np.prod(
            [
                np.asarray(t)[tuple(s[p] for p in parents)][s[n]]
                for n, (parents, t) in network.items()
            ]
        )
        for s in states
    ]
    return states, np.array(ps)


def steps(lvm, data, number):
    vilvm.fit(
        lvm,
        data,
        steps=number,
        objective=objective(),
        optimizer=partial(torch.optim.Adam, lr=0.03),
    )
    return -objective().loss(lvm.model, lvm.guide, data) / len(
        next(iter(data.values()))
    )


@pytest.mark.parametrize(("network", "evidence"), CASES)
def test_exact_inference_is_the_sum_over_every_state(network, evidence):
    lvm = BayesianNetwork(network, evidence, floor=1e-9)
    batch = every_state(lvm, evidence)
    states, p = joint(network)
    assert p.sum() == pytest.approx(1)
    log_evidence = lvm.exact_log_evidence(batch)
    for i in range(len(log_evidence)):
        given = np.array([all(s[n] == batch[n][i] for n in evidence) for s in states])
        total = p[given].sum()
        assert log_evidence[i].exp().item() == pytest.approx(total, rel=1e-5, abs=1e-7)
        if total == 0:
            continue
        for node in lvm.latents:
            marginal = [
                p[given & np.array([s[node] == k for s in states])].sum() / total
                for k in range(lvm.states[node])
            ]
            np.testing.assert_allclose(
                lvm.exact_posterior(batch, node).probs[i], marginal, atol=1e-4
            )


def test_evidence_sums_to_one_and_matches_publications():
    lvm = BayesianNetwork(ASIA, ("asia", "dyspnoea"))
    assert lvm.exact_log_evidence(
        every_state(lvm, lvm.evidence)
    ).exp().sum().item() == pytest.approx(1)
    # P(rain | wet) = 0.708 and P(sprinkler | wet) = 0.430: Murphy, 1998
    wet = {"wet": torch.tensor([1])}
    sprinkler = BayesianNetwork(SPRINKLER, ("wet",))
    assert sprinkler.exact_posterior(wet, "rain").probs[0, 1].item() == pytest.approx(
        0.7079, abs=1e-4
    )
    assert sprinkler.exact_posterior(wet, "sprinkler").probs[
        0, 1
    ].item() == pytest.approx(0.4298, abs=1e-4)


def test_draws_from_the_model_follow_the_exact_marginal():
    lvm = BayesianNetwork(ASIA, ("dyspnoea",))
    with seeded(0):
        drawn = vilvm.sample(lvm, 20_000, like={"dyspnoea": torch.tensor([0])})[
            "dyspnoea"
        ]
    p = lvm.exact_log_evidence({"dyspnoea": torch.tensor([1])}).exp().item()
    assert abs(drawn.double().mean().item() - p) < 5 * (p * (1 - p) / 20_000) ** 0.5


@pytest.mark.parametrize("guide", ["mean_field", "autoregressive"])
@pytest.mark.parametrize(
    ("network", "evidence"), [CASES[3], (ASIA, ("asia", "dyspnoea"))]
)
def test_enumeration_and_gap_sum_over_states(network, evidence, guide):
    torch.manual_seed(0)
    # A large floor keeps the weights of impossible states, and so the Monte Carlo error,
    # moderate.
    lvm = BayesianNetwork(network, evidence, guide, floor=0.02).double()
    batch = every_state(lvm, evidence)
    num_data = len(batch[evidence[0]])
    elbo = -objective().loss(lvm.model, lvm.guide, batch) / num_data
    drawn = vilvm.evaluate(lvm, batch, bounds="elbo", num_samples=2000).bounds["elbo"]
    assert abs(drawn.mean - elbo) < 5 * drawn.mc_se
    weights = vilvm.log_weights(lvm, batch, 20_000)
    # log w = log p(e) + log p(h | e) − log q(h | e), so Σ_h q(h | e) w = p(e) over the distinct
    # draws
    i = num_data - 1
    draws = torch.stack([weights.latents[n][:, i] for n in lvm.latents], -1)
    _, first = np.unique(draws.numpy(), axis=0, return_index=True)
    log_q, log_w = weights.log_guide[first, i], weights.log_weight[first, i]
    # all but the rarest states were drawn
    assert log_q.exp().sum().item() == pytest.approx(1, abs=0.01)
    exact = lvm.exact_log_evidence(batch)[i]
    assert (log_q + log_w).logsumexp(0).item() == pytest.approx(exact.item(), abs=0.1)
    gap = (
        log_q.exp() * (exact - log_w)
    ).sum()  # KL(q(h | e) ‖ p(h | e)), by the states
    one = {n: v[i:] for n, v in batch.items()}
    assert exact.item() + objective().loss(lvm.model, lvm.guide, one) == pytest.approx(
        gap.item(), abs=0.1
    )


@pytest.mark.slow
def test_only_autoregressive_guide_represents_explaining_away():
    wet = {"wet": torch.tensor([0, 1])}
    gap, marginals = {}, {}
    for guide in ("mean_field", "autoregressive"):
        torch.manual_seed(0)
        lvm = BayesianNetwork(SPRINKLER, ("wet",), guide)
        gap[guide] = lvm.exact_log_evidence(wet).mean().item() - steps(lvm, wet, 200)
        marginals[guide] = torch.stack(
            [d.double().mean(0) for d in vilvm.posterior(lvm, wet, 2000).values()], -1
        )
    assert -1e-5 < gap["autoregressive"] < 0.01
    # Coordinate ascent from the guide's values finds nothing better, and from any other start
    # no gap that vanishes.
    floored = {
        n: (parents, (1 - 2e-6) * np.asarray(t) + 1e-6)
        for n, (parents, t) in SPRINKLER.items()
    }
    states, p = joint(floored)
    log_p = [
        np.log(
            np.array(
                [q for s, q in zip(states, p, strict=True) if s["wet"] == e]
            ).reshape(2, 2, 2)
        )
        for e in (0, 1)
    ]
    log_p = [v - np.log(np.exp(v).sum()) for v in log_p]
    assert [n for n in SPRINKLER if n != "wet"] == list(lvm.latents)
    reached = np.mean(
        [
            _gap_of_product(v, m)
            for v, m in zip(log_p, marginals["mean_field"], strict=True)
        ]
    )
    assert gap["mean_field"] == pytest.approx(reached, abs=0.01)
    least = np.mean(
        [
            min(
                _gap_of_product(v, start)
                for start in product((0.05, 0.5, 0.95), repeat=3)
            )
            for v in log_p
        ]
    )
    assert 0.1 < least <= gap["mean_field"] + 1e-3


def _gap_of_product(log_p, start):
    """KL(Π q_i ‖ p(h | e)) at the end of coordinate ascent."""
    q = np.array([[1 - float(a), float(a)] for a in start])
    for _ in range(200):
        for i in range(3):
            others = [q[j] for j in range(3) if j != i]
            mean = np.einsum("iab,a,b->i", np.moveaxis(log_p, i, 0), *others)
            q[i] = np.exp(mean - mean.max()) / np.exp(mean - mean.max()).sum()
    product_ = np.einsum("a,b,c->abc", *q)
    return (product_ * (np.log(product_ + 1e-300) - log_p)).sum()


@pytest.mark.slow
def test_autoregressive_guide_learns_through_deterministic_node():
    torch.manual_seed(0)
    lvm = BayesianNetwork(ASIA, ("asia", "smoking", "xray", "dyspnoea"))
    batch = every_state(lvm, lvm.evidence)
    elbo = steps(lvm, batch, 150)
    assert -1e-5 < lvm.exact_log_evidence(batch).mean().item() - elbo < 0.02
    draws = vilvm.posterior(lvm, batch, 4000)
    for node in lvm.latents:
        exact = lvm.exact_posterior(batch, node).probs[:, 1]
        assert (draws[node].double().mean(0) - exact).abs().max() < 0.15


@pytest.mark.slow
def test_tables_are_learnt_if_asked():
    lvm, batch = tiny()
    before = lvm.exact_log_evidence(batch).mean().item()
    steps(lvm, batch, 100)
    assert lvm.exact_log_evidence(batch).mean().item() > before
    assert not any(
        n.startswith("logits")
        for n, _ in BayesianNetwork(SPRINKLER, ("wet",)).named_parameters()
    )


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["mean_field", "autoregressive"])
def test_the_contract_holds_under_enumeration(guide):
    batch = {"c": torch.tensor([0, 1, 2, 1]), "d": torch.tensor([0, 1, 1, 0])}
    check_lvm(
        lambda: (
            BayesianNetwork(THREE, ("c", "d"), guide, hidden=8, learn_tables=True),
            batch,
        ),
        objective(),
    )


def _changed(**nodes):
    return {**SPRINKLER, **nodes}


@pytest.mark.parametrize(
    ("network", "evidence", "says"),
    [
        (
            _changed(cloudy=(("wet",), [[0.5, 0.5], [0.5, 0.5]])),
            ("wet",),
            "the graph has a cycle, .*cloudy",
        ),
        (
            _changed(rain=(("clouds",), [[0.8, 0.2], [0.2, 0.8]])),
            ("wet",),
            "'rain' has a parent 'clouds', which is not a node",
        ),
        (
            _changed(rain=(("cloudy",), [0.8, 0.2])),
            ("wet",),
            r"table of 'rain' has shape \(2,\); its parents need \(2, 2 or more\)",
        ),
        (
            _changed(rain=(("cloudy",), [[0.8, 0.3], [0.2, 0.8]])),
            ("wet",),
            "a row of the table of 'rain' is not a distribution",
        ),
        (
            _changed(rain=(("cloudy",), [[1.2, -0.2], [0.2, 0.8]])),
            ("wet",),
            "a row of the table of 'rain' is not a distribution",
        ),
        (SPRINKLER, ("snow",), "the evidence 'snow' is not a node of the network"),
        (SPRINKLER, (), "leave at least one latent"),
        (SPRINKLER, tuple(SPRINKLER), "leave at least one latent"),
    ],
)
def test_bad_network_raises_one_sentence(network, evidence, says):
    with pytest.raises(ValueError, match=says):
        BayesianNetwork(network, evidence)


def test_bad_options_and_batches_raise_one_sentence():
    with pytest.raises(
        ValueError, match='guide must be "autoregressive" or "mean_field"'
    ):
        BayesianNetwork(SPRINKLER, ("wet",), "full")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="floor must be above 0"):
        BayesianNetwork(SPRINKLER, ("wet",), floor=0.0)
    lvm = BayesianNetwork(SPRINKLER, ("wet",))
    with pytest.raises(ContractError, match="of exactly wet; this one holds rain"):
        lvm.exact_log_evidence({"rain": torch.tensor([1])})
    with pytest.raises(ContractError, match="this one is a Tensor"):
        vilvm.log_weights(lvm, torch.zeros(3, 1))
    with pytest.raises(ContractError, match="the states of 'wet' are 0 to 1"):
        lvm.exact_log_evidence({"wet": torch.tensor([2])})
    with pytest.raises(ValueError, match="'wet' is not a latent; the latents are"):
        lvm.exact_posterior({"wet": torch.tensor([1])}, "wet")
