"""The DataTree of a pair has its densities and draws, and ArviZ's functions run on it."""

import warnings

import h5py
import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from torch.distributions import Bernoulli

import vilvm
from vilvm._runtime.random import seeded
from vilvm.data import Data
from vilvm.diagnostics import predictive_check
from vilvm.export import load, save, to_datatree
from vilvm.lvm import ContractError, evaluation_mode
from vilvm.models.ppca import PPCA
from vilvm.models.vae import tiny
from vilvm.weights.generated_quantities import replay

az = pytest.importorskip("arviz")
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(batch):
    """Eight schools, non-centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(batch["y"])):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, batch["sigma"]), obs=batch["y"])


def pooled(batch):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(batch["y"])):
        pyro.sample("y", dist.Normal(mu, batch["sigma"]), obs=batch["y"])


def fitted(model, batch, steps=100):
    torch.manual_seed(0)
    lvm = vilvm.Pair(model, AutoNormal(model))
    vilvm.fit(lvm, batch, steps=steps)
    return lvm


@pytest.fixture(scope="module")
def batch():
    return {"y": Y, "sigma": SIGMA}


@pytest.fixture(scope="module")
def eight(batch):
    lvm = fitted(schools, batch)
    return lvm, to_datatree(
        lvm, batch, num_samples=400, coords={"school": tuple("ABCDEFGH")}
    )


@pytest.fixture(scope="module")
def line():
    """PPCA with an inexact guide, and data like its own."""
    torch.manual_seed(0)
    x = torch.randn(7, 2) @ torch.randn(2, 5) + torch.randn(7, 5)
    lvm = PPCA(5, 2).maximise(x)
    with torch.no_grad():
        lvm.log_s += 0.3
    return lvm, x


@pytest.fixture(scope="module")
def ppca(line):
    return to_datatree(*line, num_samples=300, dims={"z": ["code"]}, num_predictive=50)


def test_local_latents_have_the_dimension_of_their_plate(ppca):
    assert (
        ppca.posterior.z.dims == ppca.prior.z.dims == ("chain", "draw", "data", "code")
    )
    assert ppca.posterior.z.shape == (1, 300, 7, 2)
    assert ppca.prior.z.shape == (1, 50, 7, 2)
    for group in (ppca.posterior_predictive, ppca.prior_predictive):
        assert group.x.dims == ("chain", "draw", "data", "x_dim_0")
        assert group.x.shape == (1, 50, 7, 5)
    assert ppca.log_likelihood.x.dims == ("chain", "draw", "data")
    assert all(
        v.dims == ("chain", "draw", "data")
        for v in ppca.sample_stats.data_vars.values()
    )
    assert ppca.diagnostics.pareto_k.dims == ("data",)
    assert ppca.posterior.data.values.tolist() == list(range(7))
    assert ppca.attrs["weights"] == "per datum"
    assert "constant_data" not in ppca


def test_prepared_data_give_the_same_tree(line):
    lvm, x = line
    options = {"num_samples": 30, "num_predictive": 7, "seed": 3}
    prepared = vilvm.prepare(lvm, x, batch_size=3, seed=3)
    tree = to_datatree(prepared, **options)
    expected = to_datatree(lvm, x, batch_size=3, **options)
    for group in expected.children:
        xr.testing.assert_identical(
            tree[group].dataset.drop_attrs(), expected[group].dataset.drop_attrs()
        )
    del tree.attrs["created_at"], expected.attrs["created_at"]
    assert tree.attrs == expected.attrs
    with pytest.raises(ValueError, match="leave out the data"):
        to_datatree(prepared, x)


def test_shared_latents_have_one_weight_for_all_data(eight):
    _, tree = eight
    assert tree.posterior.mu.dims == ("chain", "draw")
    assert (
        tree.posterior.theta.dims
        == tree.posterior.eta.dims
        == ("chain", "draw", "school")
    )
    assert tree.prior.theta.dims == ("chain", "draw", "school")
    assert tree.log_likelihood.y.dims == ("chain", "draw", "school")
    assert all(
        v.dims == ("chain", "draw") for v in tree.sample_stats.data_vars.values()
    )
    assert tree.diagnostics.pareto_k.dims == ()
    assert tree.posterior.school.values.tolist() == list("ABCDEFGH")
    assert tree.attrs["weights"] == "of all data together"


def test_deterministic_values_belong_to_the_draws(eight):
    for group in (eight[1].posterior, eight[1].prior):
        np.testing.assert_allclose(
            group.theta, group.mu + group.tau * group.eta, rtol=1e-4, atol=1e-4
        )


def test_observed_and_constant_data_are_separate_groups(eight):
    _, tree = eight
    np.testing.assert_array_equal(tree.observed_data.y, Y)
    assert list(tree.constant_data) == ["sigma"]
    assert tree.constant_data.sigma.dims == ("school",)
    np.testing.assert_array_equal(tree.constant_data.sigma, SIGMA)


@pytest.mark.parametrize("case", ["line", "eight"])
def test_densities_equal_log_weights(case, request, batch):
    lvm, x = (
        request.getfixturevalue("line")
        if case == "line"
        else (request.getfixturevalue("eight")[0], batch)
    )
    tree = to_datatree(lvm, x, num_samples=60, seed=3)
    with torch.no_grad(), seeded(3), evaluation_mode(lvm):
        weights = vilvm.log_weights(lvm, x, 60)
    stats = tree.sample_stats
    np.testing.assert_array_equal(stats.log_weight[0], weights.log_weight)
    np.testing.assert_allclose(
        stats.log_p - stats.log_q, stats.log_weight, rtol=1e-12, atol=1e-10
    )
    for name, value in weights.latents.items():
        np.testing.assert_array_equal(tree.posterior[name][0], value)
    for name, value in weights.log_likelihoods.items():
        np.testing.assert_array_equal(tree.log_likelihood[name][0], value)


def test_densities_equal_the_formulas(line, ppca):
    """By torch.distributions, at the exported draws."""
    lvm, x = line
    z = torch.from_numpy(ppca.posterior.z[0].values).double()
    W, b, sigma, V, s = (
        p.detach().double()
        for p in (lvm.W, lvm.b, lvm.log_sigma.exp(), lvm.V, lvm.log_s.exp())
    )
    normal = torch.distributions.Normal
    likelihood = normal(z @ W.T + b, sigma).log_prob(x.double()).sum(-1)
    prior = normal(0.0, 1.0).log_prob(z).sum(-1)
    guide = normal((x.double() - b) @ V.T, s).log_prob(z).sum(-1)
    np.testing.assert_allclose(ppca.log_likelihood.x[0], likelihood, atol=1e-4)
    np.testing.assert_allclose(
        ppca.sample_stats.log_p[0], likelihood + prior, atol=1e-4
    )
    np.testing.assert_allclose(ppca.sample_stats.log_q[0], guide, atol=1e-4)


@pytest.mark.parametrize("case", ["ppca", "eight"])
def test_pareto_k_equals_arviz(case, request):
    tree = request.getfixturevalue(case)
    tree = tree[1] if isinstance(tree, tuple) else tree
    _, k = (-tree.sample_stats.log_weight).azstats.psislw(dim=["chain", "draw"])
    np.testing.assert_allclose(tree.diagnostics.pareto_k, k, rtol=1e-10)
    assert np.isfinite(k).all()


def test_predictive_draws_have_the_moments_of_the_model(line):
    lvm, x = line
    tree = to_datatree(lvm, x, num_samples=4000)
    W, b, V = (p.detach().numpy() for p in (lvm.W, lvm.b, lvm.V))
    s, noise = lvm.log_s.exp().detach().numpy(), lvm.log_sigma.exp().item() ** 2
    mean = ((x.numpy() - b) @ V.T) @ W.T + b
    variance = (W**2 * s**2).sum(1) + noise
    prior_variance = (W**2).sum(1) + noise
    for group, centre, spread in (
        ("posterior_predictive", mean, variance),
        ("prior_predictive", b[None], prior_variance),
    ):
        draws = tree[group].x[0].values
        z = (draws.mean(0) - centre) / np.sqrt(spread / len(draws))
        assert np.abs(z).max() < 5
        z = (draws.var(0, ddof=1) / spread - 1) / np.sqrt(2 / (len(draws) - 1))
        assert np.abs(z).max() < 5


def test_resampled_draws_have_the_posterior_moments(line):
    lvm, x = line
    tree = to_datatree(lvm, x, num_samples=4000, resampled=True)
    exact = lvm.exact_posterior(x)
    z = tree.posterior.z[0].values
    standard = (
        z - exact.mean.detach().numpy()
    ) / exact.variance.sqrt().detach().numpy()
    # 4,000 of 40,000 proposals, with replacement: a variance of 1/4000, plus at most a tenth of
    # that from the proposals.
    assert np.abs(standard.mean(0)).max() < 5 * np.sqrt(1.2 / 4000)
    assert np.abs(standard.var(0) - 1).max() < 5 * np.sqrt(1.2 * 2 / 4000)
    assert "resampled" in tree.attrs["draws"]
    of_guide = (
        to_datatree(lvm, x, num_samples=4000).posterior.z[0].values
        / exact.variance.sqrt().detach().numpy()
    )
    assert (
        of_guide.var(0).min() > 1.5
    )  # the guide is too wide: without resampling the test would fail
    stats = tree.sample_stats
    np.testing.assert_allclose(stats.log_p - stats.log_q, stats.log_weight, atol=1e-10)
    log_likelihood = (
        torch.distributions.Normal(
            torch.from_numpy(z) @ lvm.W.T + lvm.b, lvm.log_sigma.exp()
        )
        .log_prob(x)
        .sum(-1)
    )
    np.testing.assert_allclose(
        tree.log_likelihood.x[0], log_likelihood.detach(), atol=1e-3
    )


def test_batches_are_concatenated_in_order(line):
    lvm, x = line
    tree = to_datatree(lvm, x, num_samples=2000, batch_size=3)
    assert tree.posterior.z.shape == (1, 2000, 7, 2)
    np.testing.assert_array_equal(tree.observed_data.x, x)
    assert tree.diagnostics.pareto_k.shape == (7,)
    mean, sd = (
        ((x - lvm.b) @ lvm.V.T).detach().numpy(),
        lvm.log_s.exp().detach().numpy(),
    )
    assert (
        np.abs((tree.posterior.z[0].mean("draw") - mean) / sd * np.sqrt(2000)).max() < 5
    )


def test_netcdf_round_trip(eight, ppca, tmp_path):
    for tree in (eight[1], ppca):
        path = save(tree, tmp_path / "new" / "tree.nc")
        back = load(path)
        assert back.identical(tree)  # values, coordinates and attributes
        assert list(path.parent.iterdir()) == [path]
        with az.from_netcdf(path, engine="h5netcdf") as read:
            assert read.identical(tree)


def test_attributes_describe_the_origin(line):
    lvm, x = line
    tree = to_datatree(lvm, Data(x, name="rows", split="test"), num_samples=30, seed=4)
    said = {
        key: tree.attrs[key]
        for key in (
            "inference_library",
            "model",
            "data",
            "split",
            "transform",
            "num_data",
            "seed",
        )
    }
    assert said == {
        "inference_library": "vilvm",
        "model": "vilvm.models.ppca.PPCA",
        "data": "rows",
        "split": "test",
        "transform": "none",
        "num_data": 7,
        "seed": 4,
    }
    assert tree.posterior.attrs["inference_library"] == "vilvm"


def test_seed_fixes_draws_and_leaves_the_generator(line):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (
        to_datatree(*line, num_samples=30, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    for group in first.children:
        assert first[group].equals(second[group])
    for group in ("posterior", "prior", "posterior_predictive", "prior_predictive"):
        assert not first[group].equals(other[group])


def test_broken_file_raises_one_sentence(ppca, tmp_path):
    path = save(ppca, tmp_path / "tree.nc")
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:10], b"", b"not netCDF at all" * 100):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="cannot be read as netCDF") as error:
            load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load(tmp_path / "none.nc")


def test_failed_write_leaves_the_old_file(ppca, tmp_path):
    path = save(ppca, tmp_path / "tree.nc")
    whole, broken = path.read_bytes(), ppca.copy()
    broken.attrs["of no kind"] = object()
    with pytest.raises(TypeError):
        save(broken, path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("case", ["ppca", "eight"])
def test_arviz_summarises_and_computes_loo(case, request):
    tree = request.getfixturevalue(case)
    tree = tree[1] if isinstance(tree, tuple) else tree
    summary = az.summary(tree, round_to="none")
    latent = tree.posterior["z" if case == "ppca" else "mu"]
    first = summary.loc["z[0, 0]" if case == "ppca" else "mu"]
    values = latent[0, :, 0, 0] if case == "ppca" else latent[0]
    assert float(first["mean"]) == pytest.approx(float(values.mean()), abs=1e-6)
    assert (
        len(az.summary(tree, group="sample_stats"))
        == tree.sample_stats.log_p[0, 0].size * 3
    )
    with warnings.catch_warnings():
        # local latents: a harmonic mean
        warnings.filterwarnings("ignore", "Estimated shape parameter")
        loo = az.loo(tree, pointwise=True)
    assert loo.n_data_points == (7 if case == "ppca" else 8)
    assert np.isfinite(loo.elpd)


@pytest.mark.slow
def test_leave_one_out_of_normal_mean_is_exact():
    """y_i ~ N(mu, 1), mu ~ N(0, 1), guide exact: the leave-one-out predictive density is known."""
    y = torch.tensor([0.3, -0.8, 1.1, 0.4, 0.0, -0.2, 0.9, 0.5])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(y.sum() / (len(y) + 1), (1 + len(y)) ** -0.5))

    n = len(y) - 1
    centre, spread = (y.sum() - y) / (n + 1), (1 + 1 / (n + 1)) ** 0.5
    exact = torch.distributions.Normal(centre, spread).log_prob(y).sum().item()
    found = []
    for seed in range(16):
        tree = to_datatree(vilvm.Pair(model, guide), y, num_samples=2000, seed=seed)
        corrected = az.loo_approximate_posterior(
            tree, tree.sample_stats.log_p, tree.sample_stats.log_q
        )
        found.append([az.loo(tree).elpd, corrected.elpd])
    error = np.std(found, axis=0, ddof=1) / 4
    # Student's t of 15: once in 6000
    assert (np.abs(np.mean(found, axis=0) - exact) < 5 * error).all()
    assert (error < 0.02).all()


def test_arviz_compares_two_models(eight, batch):
    other = to_datatree(fitted(pooled, batch), batch, num_samples=400)
    table = az.compare({"hierarchical": eight[1], "pooled": other})
    assert set(table.index) == {"hierarchical", "pooled"}
    assert table.loc["pooled", "rank"] == int(
        az.loo(other).elpd < az.loo(eight[1]).elpd
    )


def test_arviz_plots(eight):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, tree = eight
    with matplotlib.rc_context():
        for plot in (az.plot_dist, az.plot_forest, az.plot_trace_dist):
            plot(tree, var_names=["mu", "tau"], backend="matplotlib")
        az.plot_ppc_dist(tree, num_samples=5, backend="matplotlib")
        az.plot_prior_posterior(tree, var_names=["mu"], backend="matplotlib")
        assert len(plt.get_fignums()) >= 3
        plt.close("all")


def test_vae_has_predictive_pictures():
    lvm, x = tiny()
    tree = to_datatree(lvm, x, num_samples=40, dims={"x": ["pixel"]})
    assert tree.posterior_predictive.x.dims == ("chain", "draw", "data", "pixel")
    assert set(np.unique(tree.posterior_predictive.x)) <= {0.0, 1.0}
    z = torch.from_numpy(tree.posterior.z[0].values)
    with torch.no_grad():
        expected = Bernoulli(logits=lvm.decoder(z)).log_prob(x).sum(-1)
    np.testing.assert_allclose(tree.log_likelihood.x[0], expected, rtol=1e-4)


def test_enumerated_latents_are_summed_out():
    weight, centre = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0])

    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample(
                "k", dist.Categorical(weight), infer={"enumerate": "parallel"}
            )
            pyro.sample("x", dist.Normal(shift + centre[k], 1.0), obs=x)

    def guide(x):
        pyro.sample("shift", dist.Normal(0.2, 0.5))

    x = torch.tensor([-2.0, 0.5, 1.0])
    tree = to_datatree(vilvm.Pair(model, guide), x, num_samples=2000)
    assert list(tree.posterior) == list(tree.prior) == ["shift"]
    shift = torch.from_numpy(tree.posterior.shift[0].values)
    exact = (
        weight.log()
        + dist.Normal(shift[:, None, None] + centre, 1.0).log_prob(x[:, None])
    ).logsumexp(-1)
    np.testing.assert_allclose(tree.log_likelihood.x[0], exact, atol=1e-4)
    draws = tree.posterior_predictive.x[0].values
    variance = 0.25 + 1 + 0.3 * 0.7 * 9
    assert (
        np.abs(draws.mean(0) - (0.2 + 0.7 - 0.6)).max() < 5 * (variance / 2000) ** 0.5
    )


def test_few_draws_have_no_k(line):
    assert to_datatree(*line, num_samples=3).diagnostics.pareto_k.isnull().all()


def test_point_estimate_has_no_weights(batch):
    from pyro.infer.autoguide import AutoDelta

    lvm = vilvm.Pair(schools, AutoDelta(schools))
    tree = to_datatree(lvm, batch, num_samples=30)
    assert "sample_stats" not in tree
    assert "diagnostics" not in tree
    assert len(np.unique(tree.posterior.mu)) == 1
    assert float(tree.posterior_predictive.y.std("draw").min()) > 0
    with pytest.raises(ContractError, match="on one point"):
        to_datatree(lvm, batch, num_samples=30, resampled=True)


def test_coords_of_another_model_are_left_out_with_a_warning(line):
    lvm, batch = line
    names, pixels = [f"row {i}" for i in range(len(batch))], [1, 2]
    with pytest.warns(UserWarning, match="coords of 'pixel' are left out"):
        tree = to_datatree(
            lvm, batch, num_samples=30, coords={"data": names, "pixel": pixels}
        )
    assert list(tree.posterior["data"].values) == names
    assert "pixel" not in tree.posterior.coords


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "num_samples must be"),
        ({"num_predictive": 0}, "num_predictive must be"),
        ({"dims": {"w": ["a"]}}, "is not a site"),
        ({"dims": {"z": ["a", "b"]}}, "1 dimensions besides"),
        ({"dims": {"z": ["draw"]}}, "is taken"),
        ({"dims": {"z": ["same"], "x": ["same"]}}, "two names"),
        ({"coords": {"data": [1, 2]}}, "2 coordinates"),
    ],
)
def test_invalid_options_raise(line, options, words):
    with pytest.raises(ValueError, match=words):
        to_datatree(*line, **{"num_samples": 5, **options})


def test_model_that_subsamples_raises():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=3) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    with pytest.raises(ContractError, match="subsamples its plate 'data'"):
        to_datatree(vilvm.Pair(model, AutoNormal(model)), Y, num_samples=5)


def two_plates(x):
    """Latents by row and by column, shape (columns, rows) in Pyro's order."""
    pyro.deterministic("constant", torch.ones(2))
    with pyro.plate("column", 3, dim=-2):
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            total = pyro.deterministic("total", a.sum(-1) + b)
            pyro.sample("x", dist.Normal(total, 0.1), obs=x.T)


@pytest.mark.parametrize("num_samples", [1, 2, 6])
def test_replay_keeps_the_order_of_dimensions(num_samples):
    x = torch.randn(5, 3)
    lvm = vilvm.Pair(two_plates, AutoNormal(two_plates))
    latents = vilvm.posterior(lvm, x, num_samples)
    said = replay(lvm, x, latents)
    assert said.latents["a"].shape == (num_samples, 3, 2)
    torch.testing.assert_close(
        said.deterministics["total"], latents["a"].sum(-1)[..., None] + latents["b"]
    )
    assert (said.observed["x"] - said.deterministics["total"]).abs().max() < 0.1 * 6
    assert torch.equal(said.deterministics["constant"], torch.ones(num_samples, 2))
    assert torch.equal(said.recorded["x"], x.T)
    assert said.data_axes == {"b": 2, "x": 2, "total": 2}


def test_second_plate_has_its_own_dimension_name():
    x = torch.randn(5, 3)
    tree = to_datatree(
        vilvm.Pair(two_plates, AutoNormal(two_plates)),
        x,
        num_samples=10,
        dims={"x": ["column"]},
    )
    assert tree.posterior_predictive.x.dims == ("chain", "draw", "column", "data")
    assert tree.observed_data.x.dims == ("column", "data")
    assert tree.posterior.total.dims == ("chain", "draw", "total_dim_0", "data")


def test_replay_with_invalid_latents_raises(line):
    lvm, x = line
    with pytest.raises(ContractError, match="pass the number of draws"):
        replay(lvm, x)
    with pytest.raises(ContractError, match="no latent 'w'"):
        replay(lvm, x, {"w": torch.zeros(3, 7, 2)})
    with pytest.raises(
        ContractError,
        match=r"given draws of shape \(4, 2\), and its draws in the model have shape \(7, 2\)",
    ):
        replay(lvm, x, {"z": torch.zeros(3, 4, 2)})


def only_factors(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", -0.5 * (x - z).square())


def halved(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def test_model_of_factors_has_no_observed_data():
    x = torch.randn(6)
    lvm = vilvm.Pair(only_factors, halved)
    tree = to_datatree(lvm, x, num_samples=50)
    assert set(tree.children) == {
        "posterior",
        "log_likelihood",
        "sample_stats",
        "constant_data",
        "diagnostics",
    }
    z = torch.from_numpy(tree.posterior.z.values[0])
    torch.testing.assert_close(
        torch.from_numpy(tree.log_likelihood.f.values[0]), -0.5 * (x - z).square()
    )
    assert (
        tree.attrs["no posterior_predictive"]
        == "the model observes nothing but factors"
    )
    with pytest.raises(vilvm.lvm.NotApplicable, match="observes nothing but factors"):
        predictive_check(lvm, x)


class Undrawn(dist.TorchDistribution):
    """A normal density without a method sample."""

    support = dist.constraints.real

    @property
    def arg_constraints(self):
        return {}

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape)

    def expand(self, batch_shape, _instance=None):
        return Undrawn(self.loc.expand(batch_shape))

    def log_prob(self, value):
        return dist.Normal(self.loc, 1.0).log_prob(value)


def test_undrawable_likelihood_loses_only_predictive_groups(tmp_path):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", Undrawn(z), obs=x)

    x = torch.randn(6)
    lvm = vilvm.Pair(model, halved)
    tree = load(save(to_datatree(lvm, x, num_samples=50), tmp_path / "tree.nc"))
    assert {"posterior", "log_likelihood", "prior", "observed_data"} <= set(
        tree.children
    )
    assert not {"posterior_predictive", "prior_predictive"} & set(tree.children)
    assert "site 'x' cannot be drawn from" in tree.attrs["no posterior_predictive"]
    torch.testing.assert_close(torch.from_numpy(tree.observed_data.x.values), x)
    assert (tree.posterior.twice == 2 * tree.posterior.z).all()
    with pytest.raises(vilvm.lvm.NotApplicable, match="cannot be drawn from"):
        predictive_check(lvm, x)


def external(file, other):
    file["posterior/z"] = h5py.ExternalLink(str(other), "/x")


def soft(file, other):
    file["posterior/z"] = h5py.SoftLink("/posterior/x")


def its_own_group(file, other):
    file["posterior/again"] = file["posterior"]


def raw(file, other):
    file.create_dataset(
        "posterior/z", (4,), "i1", external=[(str(other), 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file, other):
    layout = h5py.VirtualLayout((3,), "i1")
    layout[:] = h5py.VirtualSource(str(other), "x", (3,))
    file.create_virtual_dataset("posterior/z", layout)


def larger_than_memory(file, other):
    file.create_dataset("posterior/z", (2**50,), "f8", chunks=(1024,))


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (external, "/posterior/z is a link to another place"),
        (soft, "/posterior/z is a link to another place"),
        (its_own_group, "/posterior/again is a second link"),
        (raw, "numbers of /posterior/z are in another file"),
        (virtual, "numbers of /posterior/z are in another file"),
        (larger_than_memory, "its arrays take .* GiB"),
    ],
)
def test_files_with_links_raise(tmp_path, alter, words):
    path, other = tmp_path / "tree.nc", tmp_path / "other.h5"
    save(
        xr.DataTree.from_dict({"posterior": xr.Dataset({"x": ("a", [1.0, 2.0])})}), path
    )
    with h5py.File(other, "w") as file:
        file["x"] = np.ones(3, dtype="i1")
    with h5py.File(path, "r+") as file:
        alter(file, other)
    with pytest.raises(ValueError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_load_accepts_only_files_of_save(tmp_path):
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset({"x": ("a", [1.0, 2.0])})})
    assert load(save(tree, tmp_path / "own.nc")).identical(tree)
    tree.to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(
        ValueError, match=r"other\.nc was not written by vilvm\.export\.save"
    ):
        load(tmp_path / "other.nc")
    for given, path, words in (
        (tree, tmp_path, "is a folder; give the path of a file in it"),
        (
            xr.Dataset(),
            tmp_path / "x.nc",
            "tree must be a DataTree, such as to_datatree returns; got a Dataset",
        ),
        (tree, "a\0.nc", "holds a NUL byte"),
    ):
        with pytest.raises(ValueError, match=words):
            save(given, path)
    assert not (tmp_path / "x.nc").exists()
