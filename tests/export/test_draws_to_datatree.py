"""Given draws become a DataTree with their chains, in the user's names, and ArviZ runs on it."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.reparam import LocScaleReparam

import vilvm
from vilvm.export import draws_to_datatree, load, save
from vilvm.lvm import ContractError

az = pytest.importorskip("arviz")
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
CHAINS, LENGTH = 3, 40


def schools(data):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(data["y"])):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.deterministic("effect", theta - mu)
        pyro.sample("y", dist.Normal(theta, data["sigma"]), obs=data["y"])


def some_draws(seed=0):
    """Draws (chain, draw, *event), not of the posterior."""
    g = torch.Generator().manual_seed(seed)
    mu = torch.randn(CHAINS, LENGTH, generator=g, dtype=torch.float64)
    theta = torch.randn(CHAINS, LENGTH, 8, generator=g, dtype=torch.float64)
    return {"mu": mu, "tau": mu.exp(), "theta": mu[..., None] + theta}


@pytest.fixture(scope="module")
def batch():
    return {"y": Y, "sigma": SIGMA}


@pytest.fixture(scope="module")
def tree(batch):
    return draws_to_datatree(
        some_draws(),
        schools,
        batch,
        num_predictive=30,
        coords={"school": list("ABCDEFGH")},
    )


def test_groups_have_chains_draws_and_plate(tree):
    assert set(tree.children) == {
        "posterior",
        "log_likelihood",
        "posterior_predictive",
        "observed_data",
        "constant_data",
    }
    given = some_draws()
    for name, value in given.items():
        np.testing.assert_array_equal(tree.posterior[name], value)
    assert tree.posterior.mu.dims == ("chain", "draw")
    assert tree.posterior.theta.dims == ("chain", "draw", "school")
    assert tree.posterior.theta.shape == (CHAINS, LENGTH, 8)
    assert tree.posterior_predictive.y.shape == (CHAINS, 10, 8)
    assert tree.observed_data.y.dims == ("school",)
    np.testing.assert_array_equal(tree.observed_data.y, Y)
    np.testing.assert_array_equal(tree.constant_data.sigma, SIGMA)
    assert tree.posterior.school.values.tolist() == list("ABCDEFGH")


def test_deterministic_sites_and_likelihoods_belong_to_the_draws(tree):
    theta = tree.posterior.theta
    np.testing.assert_allclose(tree.posterior.effect, theta - tree.posterior.mu)
    assert tree.posterior.effect.dims == theta.dims
    expected = dist.Normal(torch.from_numpy(theta.values), SIGMA.double()).log_prob(Y)
    np.testing.assert_allclose(tree.log_likelihood.y, expected, rtol=1e-12)
    assert tree.log_likelihood.y.dims == ("chain", "draw", "school")


def test_predictive_draws_have_the_likelihood(batch):
    """Standardised, x̃ is N(0, 1); |z| < 5 fails once in 1.7 million."""
    found = draws_to_datatree(some_draws(), schools, batch, num_predictive=10**6)
    theta, y = found.posterior.theta.values, found.posterior_predictive.y.values
    z = (y - theta) / SIGMA.numpy()
    assert abs(z.mean()) < 5 / z.size**0.5
    assert abs((z**2).mean() - 1) < 5 * (2 / z.size) ** 0.5


def test_given_deterministic_values_are_kept(batch):
    given = some_draws() | {"effect": torch.full((CHAINS, LENGTH, 8), 7.0)}
    assert (draws_to_datatree(given, schools, batch).posterior.effect == 7).all()


def test_seed_fixes_predictive_draws_and_leaves_the_generator(batch):
    before = torch.random.get_rng_state()
    one, two, other = (
        draws_to_datatree(some_draws(), schools, batch, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.posterior_predictive.equals(two.posterior_predictive)
    assert not one.posterior_predictive.equals(other.posterior_predictive)
    assert torch.get_default_dtype() == torch.float32


def test_arviz_summarises_chains_and_computes_loo(tree):
    summary = az.summary(tree, var_names=["mu", "theta"], round_to="none")
    mu = some_draws()["mu"]
    assert float(summary.loc["mu", "mean"]) == pytest.approx(mu.mean().item())
    assert np.isfinite(float(summary.loc["mu", "r_hat"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter")
        assert az.loo(tree).n_data_points == 8


def test_tree_survives_its_file(tree, tmp_path):
    assert load(save(tree, tmp_path / "tree.nc")).posterior.equals(tree.posterior)


def test_enumerated_latents_are_summed_out():
    weight, centre = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0])

    def mixture(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            of = dist.Categorical(weight.to(shift))
            k = pyro.sample("k", of, infer={"enumerate": "parallel"})
            loc = shift + centre.to(shift)[k]
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x, shift = torch.tensor([-2.0, 0.5, 1.0]), torch.randn(2, 20).double()
    tree = draws_to_datatree({"shift": shift}, mixture, x)
    exact = weight.double().log() + dist.Normal(
        shift[..., None, None] + centre, 1.0
    ).log_prob(x[:, None])
    np.testing.assert_allclose(tree.log_likelihood.x, exact.logsumexp(-1), atol=1e-6)
    assert list(tree.posterior) == ["shift"]
    assert tree.posterior_predictive.x.shape == (2, 20, 3)


def test_flat_prior_and_numpy_draws_are_accepted():
    def model(x):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    tree = draws_to_datatree({"mu": np.zeros((2, 5))}, model, torch.zeros(4))
    np.testing.assert_allclose(tree.log_likelihood.x, -0.5 * np.log(2 * np.pi))


def test_model_of_factors_names_the_missing_group():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("f", -0.5 * (x - mu).square().sum())

    tree = draws_to_datatree({"mu": torch.zeros(2, 5)}, model, torch.ones(4))
    assert set(tree.children) == {"posterior", "log_likelihood", "constant_data"}
    np.testing.assert_allclose(tree.log_likelihood.f, -2.0)
    assert "nothing but factors" in tree.attrs["no posterior_predictive"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta": None}, "no draws of the latent 'theta'"),
        ({"eta": torch.zeros(CHAINS, LENGTH)}, "no site 'eta'"),
        ({"theta": torch.zeros(CHAINS, LENGTH, 7)}, r"'theta' have shape \(3, 40, 7\)"),
        ({"tau": torch.ones(CHAINS * LENGTH)}, r"'tau' have shape \(120,\)"),
        ({"tau": torch.ones(CHAINS, 9)}, r"here \(3, 40\)"),
    ],
)
def test_draws_that_do_not_fit_raise(batch, change, words):
    given = {n: v for n, v in (some_draws() | change).items() if v is not None}
    with pytest.raises(ValueError, match=words) as error:
        draws_to_datatree(given, schools, batch)
    assert "\n" not in str(error.value)


def test_invalid_arguments_raise(batch):
    for given, model, options, words in (
        (torch.zeros(2, 3), schools, {}, "draws must be a dict of arrays"),
        (some_draws(), schools, {"num_predictive": 0}, "num_predictive must be"),
        (some_draws(), schools, {"seed": -1}, "seed must be"),
        (some_draws(), schools, {"dims": {"w": ["a"]}}, "is not a site"),
    ):
        with pytest.raises(ValueError, match=words):
            draws_to_datatree(given, model, batch, **options)
    with pytest.raises(
        ContractError, match="draws_to_datatree: the model, of type int"
    ):
        draws_to_datatree(some_draws(), 3, batch)


@pytest.mark.parametrize("refine", [False, True])
def test_posterior_of_infer_keeps_the_names_of_the_user(batch, refine):
    """The latents are inferred in standard units, and exported as the user names them."""
    posterior = vilvm.infer(schools, batch, budget=10, refine=refine, progress=False)
    tree = posterior.to_datatree(num_predictive=50)
    assert set(tree.posterior) == {"mu", "tau", "theta", "effect"}
    assert set(tree.log_likelihood) == set(tree.observed_data) == {"y"}
    assert tree.posterior.sizes["chain"] == posterior.chains
    flat = tree.posterior.theta.values.reshape(-1, 8)
    np.testing.assert_array_equal(flat, posterior.draws["theta"])
    assert tree.attrs["verdict"] == posterior.verdict


def test_chains_of_a_posterior_stay_apart(batch):
    """Chain c of the tree holds draws c T to (c + 1) T of the posterior."""
    posterior = vilvm.inference.refine(schools, batch, budget=2, progress=False)
    tree = posterior.to_datatree(num_predictive=50)
    length = len(posterior.draws["mu"]) // posterior.chains
    assert posterior.chains > 1
    assert tree.posterior.mu.shape == (posterior.chains, length)
    np.testing.assert_array_equal(
        tree.posterior.mu[1], posterior.draws["mu"][length : 2 * length]
    )


def test_model_reparametrised_by_the_user_can_be_exported():
    """Its latents in standard units are dropped by infer, whose draws have the user's sites."""

    def plain(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 0.5))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    model = pyro.poutine.reparam(plain, config={"z": LocScaleReparam(0.0)})
    posterior = vilvm.infer(model, torch.ones(5), refine=False, progress=False)
    tree = posterior.to_datatree(num_predictive=20)
    assert set(tree.posterior) == {"mu", "z"}
