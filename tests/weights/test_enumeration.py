"""Enumerated latents are summed over exactly, in any plates and chains."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal

import vilvm
from vilvm.weights import replicate
from vilvm.weights.generated_quantities import replay
from vilvm.weights.guide_density import divergences

WEIGHTS, MEANS = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-2.0, 0.0, 3.0])
X = torch.tensor([-2.5, -1.0, 0.3, 2.0])


@config_enumerate
def mixture(x):
    """A local component and a local shift; the guide draws the shift."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(MEANS[k] + z, 0.7), obs=x)
        pyro.sample("y", dist.Normal(z, 2.0), obs=x)


def shifts(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.1 * x, 0.8))


def test_local_mixture_weights_factorise_over_data():
    lvm = vilvm.Pair(mixture, shifts)
    weights = vilvm.log_weights(lvm, X, 5)
    z = weights.latents["z"]
    parts = WEIGHTS.log() + dist.Normal(MEANS + z[..., None], 0.7).log_prob(X[:, None])
    torch.testing.assert_close(weights.log_likelihoods["x"], parts.logsumexp(-1))
    torch.testing.assert_close(
        weights.log_likelihoods["y"], dist.Normal(z, 2.0).log_prob(X)
    )
    assert sorted(weights.log_priors) == ["z"]
    assert weights.log_weight.shape == (5, 4)
    assert vilvm.log_weights(lvm, X[:1], 1).log_weight.shape == (1, 1)
    assert sorted(vilvm.posterior(lvm, X, 3)) == ["z"]
    assert set(vilvm.evaluate(lvm, X, num_samples=20).bounds) == {"elbo", "iwae"}


LOCS = torch.tensor([[-2.0, 0.0], [0.0, 1.0], [2.0, -1.0]])


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_prior_that_depends_on_an_enumerated_latent(shift):
    """A GMVAE: log p(z) and log p(x | z) are exact sums over the component of its prior."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample(
                "k", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"}
            )
            z = pyro.sample("z", dist.Normal(LOCS[k], 0.6).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] - z[..., 1] + shift * k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.stack([x, -x], -1) / 3, 0.9).to_event(1))

    lvm = vilvm.Pair(model, guide)
    weights = vilvm.log_weights(lvm, X, 200)
    z = weights.latents["z"]
    prior = WEIGHTS.log() + dist.Normal(LOCS, 0.6).to_event(1).log_prob(z[..., None, :])
    seen = dist.Normal(
        (z[..., 0] - z[..., 1])[..., None] + shift * torch.arange(3), 1.0
    ).log_prob(X[:, None])
    joint = (prior + seen).logsumexp(-1)
    torch.testing.assert_close(weights.log_priors["z"], prior.logsumexp(-1))
    torch.testing.assert_close(
        weights.log_likelihood.to(joint), joint - prior.logsumexp(-1)
    )
    found = divergences(lvm, X, 200)["z"]
    error = (found.var(0) / 200 + weights.rate.var(0) / 200).sqrt()
    assert ((found.mean(0) - weights.rate.mean(0)).abs() < 5 * error).all()
    # The evidence is the sum of normal densities: x given k is normal.
    means, sd = LOCS[:, 0] - LOCS[:, 1] + shift * torch.arange(3), (1 + 2 * 0.36) ** 0.5
    exact = (WEIGHTS.log() + dist.Normal(means, sd).log_prob(X[:, None])).logsumexp(-1)
    bound = vilvm.evaluate(lvm, X, num_samples=2000).bounds["iwae"]
    assert ((bound.values - exact).abs() < 5 * bound.errors + 1e-3).all()
    # a component drawn from its prior is not a draw given z
    for draw in (lambda z: replicate(lvm, z), lambda z: replay(lvm, X, z)):
        with pytest.raises(
            vilvm.ContractError,
            match=r"prior of latent 'z' depends on an enumerated latent",
        ):
            draw(vilvm.posterior(lvm, X, 2))
    assert vilvm.sample(lvm, 5)["x"].shape == (5,)


@config_enumerate
def chain(x):
    """Sequences of a hidden Markov chain of two states with shared emission means."""
    means = pyro.sample("means", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    transition = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    with pyro.plate("data", len(x)):
        state = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            state = pyro.sample(f"state_{t}", dist.Categorical(transition[state]))
            pyro.sample(
                f"x_{t}",
                dist.Normal(
                    means[..., 0] * (state == 0) + means[..., 1] * (state == 1), 1.0
                ),
                obs=x[:, t],
            )


def means_of(x):
    pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5).to_event(1))


def test_markov_chain_is_summed_over_all_paths():
    x = torch.randn(3, 4)
    weights = vilvm.log_weights(vilvm.Pair(chain, means_of), x, 6)
    transition = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    paths = []
    for path in itertools.product(range(2), repeat=4):
        log_path = sum(
            transition[a, b].log() for a, b in itertools.pairwise((0, *path))
        )
        means = weights.latents["means"][:, list(path)]  # (S, T)
        paths.append(log_path + dist.Normal(means[:, None], 1.0).log_prob(x).sum(-1))
    torch.testing.assert_close(
        weights.log_likelihood,
        torch.stack(paths).logsumexp(0).double(),
        rtol=1e-5,
        atol=1e-4,
    )
    assert weights.log_weight.shape == (6,)  # the means are shared
    assert weights.log_likelihood.shape == (6, 3)


def test_enumeration_equals_pyros_trace_enum_elbo():
    torch.manual_seed(0)
    lvm = vilvm.Pair(chain, AutoNormal(poutine.block(chain, expose=["means"])))
    x = torch.randn(3, 4)
    elbo = vilvm.evaluate(lvm, x, num_samples=4000, bounds="elbo").bounds["elbo"]
    objective = TraceEnum_ELBO(
        max_plate_nesting=2, num_particles=1000, vectorize_particles=True
    )
    with vilvm.lvm.module_parameters(lvm), torch.no_grad():
        losses = torch.tensor(
            [objective.loss(lvm.model, lvm.guide, x) for _ in range(5)]
        )
    assert (
        abs(elbo.mean + losses.mean()) < 5 * (elbo.mc_se**2 + losses.var() / 5) ** 0.5
    )


def test_enumerated_global_latent_gives_one_joint_weight():
    @config_enumerate
    def model(x):
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(MEANS[k], 1.0), obs=x)

    weights = vilvm.log_weights(vilvm.Pair(model, lambda x: None), X, 2)
    exact = (
        WEIGHTS.log() + dist.Normal(MEANS, 1.0).log_prob(X[:, None]).sum(0)
    ).logsumexp(0)
    torch.testing.assert_close(
        weights.log_weight, exact.double().expand(2), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("nesting", [1, 2])
def test_shape_assertions_that_hold_only_under_enumeration(nesting):
    """As in Pyro's tutorial on tensor shapes, at the smallest number of plate dimensions."""

    def asserted(x):
        k = mixture_of_shared_shift(x)
        assert k.shape == (3,) + (1,) * nesting

    found = []
    for model in (asserted, mixture_of_shared_shift):
        lvm = vilvm.Pair(model, shift)
        torch.manual_seed(0)
        found.append(vilvm.log_weights(lvm, X, 5))
        objective = TraceEnum_ELBO(max_plate_nesting=nesting)
        fitted = vilvm.fit(
            lvm, X, epochs=2, objective=objective, seed=0, progress=False, compile=False
        )
        found.append(
            torch.tensor([r.elbo for r in fitted.history], dtype=torch.float64)
        )
    z = found[0].latents["z"]
    exact = (
        WEIGHTS.log() + dist.Normal(MEANS + z[:, None, None], 0.7).log_prob(X[:, None])
    ).logsumexp(-1)
    torch.testing.assert_close(found[0].log_likelihoods["x"].to(exact), exact)
    torch.testing.assert_close(found[0].log_weight, found[2].log_weight)
    torch.testing.assert_close(found[1], found[3])


def mixture_of_shared_shift(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(MEANS[k] + z, 0.7), obs=x)
    return k


def shift(x):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.8))


def test_error_unrelated_to_enumeration_is_reported_unchanged():
    def wrong(x):
        mixture_of_shared_shift(x)
        assert x.shape == (3,)

    with pytest.raises(vilvm.ContractError, match="AssertionError"):
        vilvm.log_weights(vilvm.Pair(wrong, shift), X, 5)
