"""Many samples of a pair equal single runs, by the expected strategy."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import vilvm
from vilvm._compile import graph
from vilvm.testing import check_lvm
from vilvm.weights import find_layout
from vilvm.weights._vectorisation import ONE_BY_ONE, VECTORISED, VMAP, strategy_of
from vilvm.weights.log_weights import log_weights_pass

X = torch.tensor([[0.3, -1.2], [0.7, 0.1], [-0.4, 2.0], [1.5, -0.6], [0.0, 0.9]])


def of_one_sample(decode):
    """z ~ N(0, I), x ~ N(decode(z), 1), with a guide that is not the posterior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.8))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))

    return vilvm.Pair(model, guide)


def branching(z):
    return 2 * z if float(z.detach().sum()) > 0 else z + 1


def written(z):
    mean = torch.zeros(5, 2)
    mean[:, 0] = z[:, 1]
    return mean


def attending(z):
    tokens = z[:, None, :, None]  # one head; each datum's two entries are its tokens
    return torch.nn.functional.scaled_dot_product_attention(
        2 * tokens, tokens, tokens
    ).reshape(z.shape[0], 2)


DECODERS = {
    "plain": (lambda z: 2 * z, VECTORISED),
    "column": (lambda z: torch.stack([z[:, 1], z[:, 0]], 1), VMAP),
    "softmax": (lambda z: z.softmax(1), VMAP),
    "softmax over the data's dimension": (lambda z: z.softmax(0), VMAP),
    "written in place": (written, VMAP),
    "attention": (attending, VMAP),
    "branch": (branching, ONE_BY_ONE),
}


def taken(lvm, x=X):
    layout = find_layout(lvm, x)
    with torch.no_grad(), vilvm.lvm.module_parameters(lvm):
        return strategy_of(lvm, x, log_weights_pass(lvm, layout), layout.vectorisation)


def single_runs(lvm, x, latents):
    """log p − log q of every sample and datum, by plain Pyro at these latents."""
    found = []
    for z in latents["z"]:
        with vilvm.lvm.module_parameters(lvm):
            guide = pyro.poutine.trace(
                pyro.poutine.condition(lvm.guide, {"z": z})
            ).get_trace(x)
            model = pyro.poutine.trace(
                pyro.poutine.condition(lvm.model, {"z": z})
            ).get_trace(x)
        terms = [model.nodes[n] for n in ("z", "x")] + [guide.nodes["z"]]
        p_z, p_x, q = (site["fn"].log_prob(site["value"]) for site in terms)
        found.append(p_z + p_x - q)
    return torch.stack(found).double()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "num_samples", [1, 2, 5, 7]
)  # 2 and 5 are sizes of the model's own
def test_every_sample_equals_a_single_run(name, num_samples):
    lvm = of_one_sample(DECODERS[name][0])
    weights = vilvm.log_weights(lvm, X, num_samples)
    torch.testing.assert_close(
        weights.log_weight, single_runs(lvm, X, weights.latents), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", DECODERS)
def test_expected_vectorisation_is_chosen(name):
    decode, expected = DECODERS[name]
    assert taken(of_one_sample(decode)) == expected


def test_message_appears_once_with_site_and_line(capsys):
    lvm = of_one_sample(DECODERS["softmax over the data's dimension"][0])
    for _ in range(2):
        vilvm.evaluate(lvm, X, num_samples=20)
        vilvm.posterior(lvm, X, 3)
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1
    assert "torch.vmap" in said[0]
    assert "site 'x'" in said[0]
    assert "test_vectorisation.py:" in said[0]


def test_check_lvm_returns_the_vectorisation():
    assert check_lvm(lambda: (of_one_sample(DECODERS["plain"][0]), X)) == VECTORISED
    assert check_lvm(lambda: (of_one_sample(DECODERS["column"][0]), X)) == VMAP


@pytest.mark.parametrize("name", ["column", "branch", "plain"])
def test_compiled_passes_use_the_same_vectorisation(name, monkeypatch):
    made = []
    monkeypatch.setattr(
        "vilvm.evaluation.sample_passes.machine_code",
        lambda *args: (made.append(1), graph(*args))[1],
    )
    lvm = of_one_sample(DECODERS[name][0])
    eager, found = (
        vilvm.evaluate(lvm, X, num_samples=40, chunk=10, compile=c).bounds["elbo"]
        for c in (False, True)
    )
    torch.testing.assert_close(found.values, eager.values, rtol=1e-5, atol=1e-5)
    assert bool(made) == (name != "branch")  # which cannot be traced


def test_seeded_results_do_not_depend_on_earlier_runs():
    lvm = of_one_sample(branching)
    first = vilvm.evaluate(lvm, X, num_samples=30, chunk=10).bounds["elbo"].values
    vilvm.evaluate(lvm, X, num_samples=7)
    assert torch.equal(
        first, vilvm.evaluate(lvm, X, num_samples=30, chunk=10).bounds["elbo"].values
    )


@pytest.mark.parametrize("wrong", ["vectorised only", "both"])
def test_draws_of_dependent_latents_in_the_guide(wrong):
    """b ~ N(3 a₀, 0.1); under a plate over samples, a[:, 0] is another datum's code."""

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 0.5).to_event(1))
            first = a[:, 0]
            if wrong != "vectorised only":
                first = a[..., 0 if a.dim() == 2 else 1]
            pyro.sample("b", dist.Normal(3 * first, 0.1))

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + b[..., None], 1.0).to_event(1), obs=x)

    x = X[
        :2
    ]  # as many data as a datum has components, so that a wrong index does not fail
    drawn = vilvm.posterior(vilvm.Pair(model, guide), x, 2)
    residual = drawn["b"] - 3 * drawn["a"][..., 0]
    assert residual.abs().max() < 0.6  # six standard deviations


def test_simulated_data_follow_single_runs():
    lvm = of_one_sample(lambda z: 10 * torch.stack([z[:, 1], z[:, 0]], 1))
    drawn = vilvm.sample(lvm, 2, like=X)
    assert (drawn["x"] - 10 * drawn["z"].flip(-1)).abs().max() < 6
    again = vilvm.weights.replicate(lvm, {"z": drawn["z"]}, like=X)
    assert (again["x"] - 10 * drawn["z"].flip(-1)).abs().max() < 6


def test_samples_against_samples_do_not_exhaust_memory():
    """Indexing sampled locations by sampled assignments, vectorised, takes S × S × N numbers."""

    def model(x):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    def guide(x):
        pyro.sample("locs", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(3)))

    x, lvm = torch.linspace(-1, 1, 100), vilvm.Pair(model, guide)
    weights = vilvm.log_weights(lvm, x, 20_000)  # else 160 GB
    z, locs = weights.latents["z"], weights.latents["locs"]
    expected = dist.Normal(locs.gather(1, z), 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(
        weights.log_weight, expected.double(), rtol=1e-4, atol=1e-3
    )


FAMILIES = {
    "Normal": (dist.Normal(1.0, 2.0), 1.0, 4.0),
    "Exponential": (dist.Exponential(torch.tensor(2.0)), 0.5, 0.25),
    "Gamma": (dist.Gamma(3.0, 2.0), 1.5, 0.75),
    "Beta": (dist.Beta(2.0, 3.0), 0.4, 0.04),
    "Laplace": (dist.Laplace(1.0, 1.0), 1.0, 2.0),
    "Uniform": (dist.Uniform(0.0, 2.0), 1.0, 1 / 3),
    "LogNormal": (
        dist.LogNormal(0.0, 0.5),
        math.exp(0.125),
        (math.exp(0.25) - 1) * math.exp(0.25),
    ),
    "StudentT": (dist.StudentT(torch.tensor(9.0)), 0.0, 9 / 7),
    "HalfNormal": (dist.HalfNormal(1.0), math.sqrt(2 / math.pi), 1 - 2 / math.pi),
    "Gumbel": (dist.Gumbel(0.0, 1.0), 0.5772157, math.pi**2 / 6),
    "Weibull": (dist.Weibull(1.0, 2.0), math.sqrt(math.pi) / 2, 1 - math.pi / 4),
    "Poisson": (dist.Poisson(3.0), 3.0, 3.0),
    "Bernoulli": (dist.Bernoulli(0.3), 0.3, 0.21),
    "Binomial": (dist.Binomial(10, 0.3), 3.0, 2.1),
    "Geometric": (dist.Geometric(0.4), 1.5, 3.75),
    "Categorical": (dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), 1.3, 0.61),
    "VonMises": (dist.VonMises(torch.tensor(0.5), torch.tensor(4.0)), 0.5, None),
}

QUICK = {"Normal", "Gamma", "Beta", "StudentT", "Poisson", "Categorical"}


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES],
)
def test_every_sample_has_its_own_random_numbers(name):
    """Mean and variance of 2,000 draws, |z| < 5, with vmap and one by one."""
    fn, mean, variance = FAMILIES[name]

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", fn)
            pyro.sample("x", dist.Normal(a.reshape(len(x)) + 0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", fn)

    x, lvm = torch.zeros(2), vilvm.Pair(model, guide)
    torch.manual_seed(0)
    a = vilvm.log_weights(lvm, x, 2000).latents["a"].double().flatten()
    spread = a.std() / len(a) ** 0.5
    assert abs(a.mean() - mean) < 5 * spread
    if variance is not None:
        assert (
            abs((a - a.mean()).square().mean() - variance)
            < 5 * (a - a.mean()).square().std() / len(a) ** 0.5
        )


def test_vectorised_particles_of_a_non_vectorisable_pair():
    """A loss of vectorised particles would be that of another model."""
    lvm = of_one_sample(lambda z: z.softmax(1))
    objective = Trace_ELBO(num_particles=200, vectorize_particles=True)
    history = vilvm.fit(
        lvm, X, steps=1, objective=objective, compile=False, progress=False
    ).history
    bound = vilvm.evaluate(lvm, X, num_samples=4000).bounds["elbo"]
    assert (
        abs(history[-1].elbo - bound.mean)
        < 5 * bound.mc_se * math.sqrt(4000 / 200) + 0.01
    )
    assert objective.vectorize_particles
    assert objective.max_plate_nesting == math.inf


def _by_numpy(z):
    return 2 * z if z.detach().numpy().sum() > 0 else z + 1


def _by_mask(z):
    return z - len(z[z > 0]) / 10


def _by_list(z):
    return z * (2.0 if sum(z.flatten().tolist()) > 0 else 1.0)


def _by_equality(z):
    return z * (2.0 if torch.equal(z.sign(), z.sign().abs()) else 1.0)


@pytest.mark.parametrize(
    "decode",
    [
        branching,
        _by_numpy,
        _by_mask,
        *(
            pytest.param(read, marks=pytest.mark.slow)
            for read in (_by_list, _by_equality)
        ),
    ],
)
def test_latent_values_read_in_python_run_sequentially(decode):
    for seed in range(4):  # for some of them first and last sample take the same branch
        torch.manual_seed(seed)
        lvm = of_one_sample(decode)
        for count in (3, 70) if seed == 0 else (3,):
            weights = vilvm.log_weights(lvm, X, count)
            torch.testing.assert_close(
                weights.log_weight,
                single_runs(lvm, X, weights.latents),
                rtol=1e-4,
                atol=1e-4,
            )


def test_values_of_data_and_parameters_may_be_read():
    lvm = of_one_sample(lambda z: z * (2.0 if float(X.sum()) > 0 else 1.0))
    assert taken(lvm) == VECTORISED
