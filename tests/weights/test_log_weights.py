"""log_weights, sample, posterior and predict on pairs of many shapes."""

import pickle
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoGaussian,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)

import vilvm
from vilvm.diagnostics import active_units
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.weights import find_layout


def schools(batch):
    y, sigma = batch
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SCHOOLS = (
    torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]),
    torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]),
)


@pytest.mark.parametrize(
    "auto", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal]
)
def test_autoguides_give_log_weights(auto):
    lvm = vilvm.Pair(schools, auto(schools))
    weights = vilvm.log_weights(lvm, SCHOOLS, 6, chunk=4)
    assert weights.log_weight.shape == (6,)
    assert weights.log_likelihood.shape == (6, 8)
    assert weights.log_priors["theta"].shape == (6, 8)
    assert weights.log_priors["mu"].shape == (6,)
    drawn = vilvm.posterior(lvm, SCHOOLS, 3)
    assert {n: tuple(v.shape) for n, v in drawn.items()} == {
        "mu": (3,),
        "tau": (3,),
        "theta": (3, 8),
    }
    assert len(pyro.get_param_store()) == 0


def test_autoguide_density_includes_the_jacobian():
    lvm = vilvm.Pair(schools, AutoNormal(schools))
    find_layout(lvm, SCHOOLS)  # an autoguide creates its parameters in its first call
    torch.manual_seed(1)
    weights = vilvm.log_weights(lvm, SCHOOLS, 4)
    torch.manual_seed(1)
    drawn = vilvm.posterior(lvm, SCHOOLS, 4)["tau"]
    # The autoguide is normal in log tau, so q(tau) is log-normal.
    truth = dist.LogNormal(lvm.guide.locs.tau, lvm.guide.scales.tau).log_prob(drawn)
    ours = weights.log_guides["tau"] + weights.log_guides["tau_unconstrained"]
    torch.testing.assert_close(ours, truth.double(), rtol=1e-4, atol=1e-4)


def test_model_without_a_data_plate():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    x = torch.tensor([0.3, -1.0])
    weights = vilvm.log_weights(vilvm.Pair(model, guide), x, 5)
    truth = dist.Normal(torch.zeros(2), 2**0.5).log_prob(x).sum()
    torch.testing.assert_close(
        weights.log_weight, truth.double().expand(5), rtol=1e-6, atol=1e-5
    )


def nested(data_outside, data_dim):
    """Series of three times: latents u of a series, v of a time, in plates of either order."""

    class Nested(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(0.5))

        def plates(self, x):
            data, time = (
                pyro.plate("data", len(x), dim=data_dim),
                pyro.plate("time", 3, dim=-3 - data_dim),
            )
            return data, *((data, time) if data_outside else (time, data))

        def across(self, x):
            return x if data_dim == -2 else x.T

        def model(self, x):
            data, first, second = self.plates(x)
            with data:
                u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with first, second:
                v = pyro.sample("v", dist.Normal(u, 1.0))
                pyro.sample("x", dist.Normal(v, 1.0), obs=self.across(x))

        def guide(self, x):
            data, first, second = self.plates(x)
            mean = x.mean(1) / 2
            with data:
                pyro.sample(
                    "u", dist.Normal(mean if data_dim == -1 else mean[:, None], 0.8)
                )
            with first, second:
                pyro.sample("v", dist.Normal(self.slope * self.across(x), 0.8))

    return Nested()


@pytest.mark.parametrize("data_dim", [-1, -2])
@pytest.mark.parametrize("data_outside", [True, False])
@pytest.mark.parametrize("num_data", [4, 3, 1])  # 3: the number of times
def test_several_latents_with_a_nested_plate(data_outside, data_dim, num_data):
    x = torch.randn(num_data, 3)
    lvm = nested(data_outside, data_dim)
    assert find_layout(lvm, x).data_plate == "data"
    torch.manual_seed(1)
    weights = vilvm.log_weights(lvm, x, 6)
    torch.manual_seed(1)
    z = vilvm.posterior(lvm, x, 6)
    u, v = z["u"], z["v"] if data_dim == -2 else z["v"].mT
    assert u.shape == (6, num_data)
    assert v.shape == (6, num_data, 3)
    prior = dist.Normal(0.0, 1.0).log_prob(u) + dist.Normal(u[..., None], 1.0).log_prob(
        v
    ).sum(-1)
    guide = dist.Normal(x.mean(1) / 2, 0.8).log_prob(u) + dist.Normal(
        x / 2, 0.8
    ).log_prob(v).sum(-1)
    expected = dist.Normal(v, 1.0).log_prob(x).sum(-1) + prior - guide
    torch.testing.assert_close(
        weights.log_weight, expected.detach().double(), rtol=1e-5, atol=1e-5
    )
    for name, value in z.items():
        assert torch.equal(weights.latents[name], value)
    # Resampling keeps u and v of a proposal together.
    torch.manual_seed(1)
    again = vilvm.resample(lvm, x, 5, proposals=6)
    for i in range(num_data):
        new = again["v"] if data_dim == -2 else again["v"].mT
        pairs = {(a.item(), *b.tolist()) for a, b in zip(u[:, i], v[:, i], strict=True)}
        assert {
            (a.item(), *b.tolist())
            for a, b in zip(again["u"][:, i], new[:, i], strict=True)
        } <= pairs


def test_ambiguous_data_plates_are_refused():
    def model(x):
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            # it matches no axis of the batch
            pyro.sample("x", dist.Normal(z, 1.0), obs=x + 0.0)

    def guide(x):
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 2, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(
        vilvm.ContractError,
        match=r"'rows' and 'columns' all have the batch's size.*name that one \"data\"",
    ):
        vilvm.log_weights(vilvm.Pair(model, guide), torch.zeros(2, 2))


def test_deterministic_sites_have_no_density():
    def model(x):
        noise = pyro.deterministic("noise", torch.tensor(2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(x):
        pyro.deterministic("half", x / 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 5, 0.8**0.5))

    x = torch.randn(50)
    weights = vilvm.log_weights(vilvm.Pair(model, guide), x, 4)
    truth = dist.Normal(0.0, 5**0.5).log_prob(x).double()
    torch.testing.assert_close(
        weights.log_weight, truth.expand(4, 50), rtol=1e-5, atol=1e-5
    )


class Batch(NamedTuple):
    x: torch.Tensor
    w: torch.Tensor


def test_batch_may_be_a_named_tuple():
    def model(batch):
        with pyro.plate("data", len(batch.x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(batch.w * z, 1.0), obs=batch.x)

    def guide(batch):
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("data", len(batch.x)):
            pyro.sample("z", dist.Normal(scale * batch.x, 1.0))

    lvm, batch = vilvm.Pair(model, guide), Batch(torch.randn(6), torch.ones(6))
    assert vilvm.log_weights(lvm, batch, 3).log_weight.shape == (3, 6)
    assert vilvm.fit(lvm, batch, steps=3, batch_size=2).steps == 3
    assert vilvm.evaluate(lvm, batch, num_samples=3, batch_size=4).bounds[
        "elbo"
    ].values.shape == (6,)


def test_guide_that_replays_the_data():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(40)
    lvm = vilvm.Pair(model, AutoNormalMessenger(model, init_scale=1.0))
    bound = vilvm.evaluate(lvm, x, num_samples=4000, batch_size=40).bounds["iwae"]
    truth = dist.Normal(0.0, 2**0.5).log_prob(x)
    assert ((bound.values - truth) / bound.errors).abs().max() < 5


def test_shared_parameter_is_counted_once():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, pyro.param("scale")))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param(
            "scale", torch.tensor(2.0), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, scale))

    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, torch.randn(8), steps=2)
    assert [n for n, _ in lvm.named_parameters()] == ["pyro_params.scale"]
    # the batch holds no closure; the functions of this test are local
    again = pickle.loads(pickle.dumps(lvm.pyro_params))
    assert torch.equal(again.scale, lvm.pyro_params.scale)


def test_pair_of_methods_trains_their_module():
    part = VAE(data_dim=6, latent_dim=2)
    lvm = vilvm.Pair(part.model, AutoNormal(part.model))
    before = part.decoder[0].weight.clone()
    vilvm.fit(lvm, torch.zeros(5, 6), steps=2)
    assert not torch.equal(before, part.decoder[0].weight)


@pytest.mark.parametrize(
    "auto",
    [
        AutoNormal,
        *(
            pytest.param(a, marks=pytest.mark.slow)
            for a in (AutoMultivariateNormal, AutoGaussian)
        ),
    ],
)
def test_autoguide_parameters_exclude_those_of_its_model(auto):
    def model(x):
        noise = pyro.param(
            "noise", torch.tensor(1.0), constraint=dist.constraints.positive
        )
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, noise), obs=x)

    x = 0.1 * torch.randn(100)
    lvm = vilvm.Pair(model, auto(model))
    vilvm.fit(lvm, x, steps=800, optimizer=partial(torch.optim.Adam, lr=0.02))
    assert lvm.pyro_params["noise"].exp().item() == pytest.approx(
        x.std().item(), rel=0.2
    )
    assert len(pyro.get_param_store()) == 0


class Normalised(torch.nn.Module):
    """Batch normalisation and dropout in the guide; ``find_layout`` must not change them."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.drop(self.norm(x)) / 2, 0.8).to_event(1))


@pytest.mark.parametrize(
    "look",
    [
        lambda m, x: find_layout(m, x),
        lambda m, x: vilvm.posterior(m, x, 2),
        lambda m, x: vilvm.posterior_mean(m, x),
        lambda m, x: vilvm.evaluate(m, x, num_samples=3),
        lambda m, x: active_units(m, x),
    ],
    ids=["layout", "posterior", "posterior_mean", "evaluate", "active_units"],
)
def test_find_layout_changes_no_state(look):
    lvm, x = Normalised(), torch.randn(20, 2) + 5
    lvm.drop.eval()
    before = {n: v.clone() for n, v in lvm.state_dict().items()}
    look(lvm, x)
    assert all(torch.equal(before[n], v) for n, v in lvm.state_dict().items())
    assert lvm.norm.training
    assert not lvm.drop.training


def test_find_layout_runs_without_dropout():
    lvm, x = Normalised(), torch.randn(20, 2) + 5
    means = [vilvm.posterior_mean(lvm, x)["z"] for _ in range(2)]
    torch.testing.assert_close(means[0], means[1])


def test_factors_are_not_counted_as_data():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("penalty", -z.square())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    lvm, z = vilvm.Pair(model, guide), torch.tensor([0.5, -1.0])
    assert set(vilvm.predict(lvm, {"z": z})) == {"x"}
    with pytest.raises(
        vilvm.lvm.NotApplicable,
        match=r"cannot be simulated: its pyro\.factor 'penalty'",
    ):
        # running the model draws from p(z) p(x | z), which is not the model's density
        vilvm.sample(lvm, 3)
    torch.manual_seed(0)
    weights = vilvm.log_weights(lvm, z, 3)
    torch.manual_seed(0)
    drawn = vilvm.posterior(lvm, z, 3)["z"]
    torch.testing.assert_close(weights.log_likelihoods["penalty"], -drawn.square())


def test_predict_with_shared_latents_of_a_hierarchy():
    lvm = vilvm.Pair(schools, AutoNormal(schools))
    theta = torch.arange(8.0)
    means = vilvm.predict(
        lvm,
        {"mu": torch.tensor(1.0), "tau": torch.tensor(2.0), "theta": theta},
        like=SCHOOLS,
    )
    torch.testing.assert_close(means["y"], theta)


def test_terms_are_the_densities_of_the_draws():
    lvm = VAE(data_dim=6, latent_dim=2, encoder_hidden=(8,), decoder_hidden=(8,))
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    torch.manual_seed(3)
    weights = vilvm.log_weights(lvm, x, 5)
    torch.manual_seed(3)
    z = vilvm.posterior(lvm, x, 5)["z"]
    torch.testing.assert_close(
        weights.log_priors["z"], dist.Normal(0, 1).log_prob(z).sum(-1)
    )
    logits = lvm.decoder(z)
    torch.testing.assert_close(
        weights.log_likelihoods["x"], dist.Bernoulli(logits=logits).log_prob(x).sum(-1)
    )
    mean, log_variance = lvm.encoder(x).chunk(2, -1)
    torch.testing.assert_close(
        weights.log_guides["z"],
        dist.Normal(mean, (log_variance / 2).exp()).log_prob(z).sum(-1),
    )
    torch.testing.assert_close(
        weights.log_weight,
        weights.log_likelihood + weights.log_prior - weights.log_guide,
    )


def test_one_datum_and_one_sample():
    lvm = VAE(data_dim=6, latent_dim=2)
    assert vilvm.log_weights(lvm, torch.zeros(1, 6)).log_weight.shape == (1, 1)


def test_masked_data_have_no_likelihood():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.mask(mask=torch.tensor([True, False, True])):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    weights = vilvm.log_weights(vilvm.Pair(model, guide), torch.ones(3), 4)
    assert (weights.log_likelihood[:, 1] == 0).all()
    assert (weights.log_likelihood[:, 0] != 0).all()


def test_gradients_reach_model_and_guide():
    lvm = VAE(data_dim=6, latent_dim=2)
    vilvm.log_weights(lvm, torch.zeros(4, 6), 3).log_weight.mean().backward()
    assert all(p.grad is not None for p in lvm.parameters())


def test_sample_draws_from_prior_and_likelihood():
    class Shifted(torch.nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(2.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(2.0, 1.0))

    torch.manual_seed(0)
    drawn = vilvm.sample(Shifted(), 4000)
    assert drawn["x"].shape == drawn["z"].shape == (4000,)
    assert abs(drawn["x"].mean() - 2) < 5 * (2 / 4000) ** 0.5
    assert abs(drawn["x"].var() - 2) < 5 * 2 * (2 / 4000) ** 0.5
    torch.testing.assert_close(
        vilvm.sample(Shifted(), 3, mean=True)["x"].shape, torch.Size([3])
    )


def test_sample_like_a_batch_draws_whole_batches():
    drawn = vilvm.sample(vilvm.Pair(schools, AutoNormal(schools)), 5, like=SCHOOLS)
    assert drawn["y"].shape == (5, 8)
    assert drawn["mu"].shape == (5,)


def test_sample_without_a_needed_batch_is_refused():
    with pytest.raises(vilvm.ContractError, match="like="):
        vilvm.sample(vilvm.Pair(schools, AutoNormal(schools)), 5)


def test_predict_equals_the_decoder():
    lvm = VAE(data_dim=6, latent_dim=2)
    z = torch.randn(4, 2)
    torch.testing.assert_close(
        vilvm.predict(lvm, {"z": z})["x"], lvm.decoder(z).sigmoid().detach()
    )


def test_resampled_draws_follow_the_posterior():
    torch.manual_seed(0)
    lvm = PPCA(4, 2)
    x = torch.randn(3, 4) @ torch.randn(4, 4)
    truth = lvm.exact_posterior(x)
    S = 20_000
    z = vilvm.resample(lvm, x, S, proposals=S)["z"]
    ess = (
        vilvm.log_weights(lvm, x, S)
        .log_weight.softmax(0)
        .square()
        .sum(0)
        .reciprocal()
        .detach()
    )
    assert ess.min() > 200
    z_scores = (z.mean(0) - truth.mean) / (truth.variance / ess[:, None]).sqrt()
    assert z_scores.abs().max() < 5
    guide = vilvm.posterior_mean(lvm, x)["z"]
    # the guide's own mean differs
    assert (
        (guide - truth.mean) / (truth.variance / ess[:, None]).sqrt()
    ).abs().max() > 5


def test_resampling_a_shared_latent_picks_whole_draws():
    lvm = vilvm.Pair(schools, AutoNormal(schools))
    drawn = vilvm.resample(lvm, SCHOOLS, 7, proposals=50)
    assert {n: tuple(v.shape) for n, v in drawn.items()} == {
        "mu": (7,),
        "tau": (7,),
        "theta": (7, 8),
    }


def test_resampling_a_degenerate_guide_is_refused():
    with pytest.raises(
        vilvm.ContractError,
        match="guide of Autoencoder puts latent 'z' on one point, "
        "so its draws have no weights",
    ):
        vilvm.resample(Autoencoder(6, 2), torch.zeros(3, 6))


def test_resampling_zero_weights_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            pyro.sample("x", dist.Uniform(z, z + 1.0, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(torch.zeros(len(x)), 0.5))

    with pytest.raises(
        vilvm.ContractError,
        match="datum 1 of the batch has probability zero under all 20 proposals",
    ):
        vilvm.resample(vilvm.Pair(model, guide), torch.tensor([0.7, 7.0]), proposals=20)


def test_posterior_mean_equals_the_guides_mean():
    lvm = VAE(data_dim=6, latent_dim=2)
    x = torch.zeros(4, 6)
    torch.testing.assert_close(
        vilvm.posterior_mean(lvm, x)["z"], lvm.encoder(x)[:, :2].detach()
    )


def test_param_statements_belong_to_the_pair():
    network = torch.nn.Linear(1, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.module("network", network)
            pyro.sample(
                "x", dist.Normal(network(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x
            )

    def guide(x):
        scale = pyro.param(
            "scale", torch.tensor(2.0), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, scale))

    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, torch.randn(20), steps=3)
    names = {n for n, _ in lvm.named_parameters()}
    assert names == {
        "pyro_params.scale",
        "pyro_modules.network.weight",
        "pyro_modules.network.bias",
    }
    assert any(p is network.weight for p in lvm.parameters())
    assert len(pyro.get_param_store()) == 0


def test_deterministic_value_is_not_drawn_again():
    def model(x):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            shift = pyro.deterministic("shift", scale * z)
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    lvm, x = vilvm.Pair(model, AutoNormal(model)), torch.zeros(4)
    drawn = vilvm.sample(lvm, 3, like=x)
    assert {n: tuple(v.shape) for n, v in drawn.items()} == {
        "scale": (3,),
        "z": (3, 4),
        "x": (3, 4),
    }
    latents = {"scale": torch.tensor(2.0), "z": torch.arange(4.0)}
    torch.testing.assert_close(
        vilvm.predict(lvm, latents, like=x)["x"], 2 * torch.arange(4.0)
    )


def test_extra_dimension_under_samples_is_refused(capsys):
    def model(batch):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(batch)):
            pyro.sample(
                "y",
                dist.Normal((beta.unsqueeze(-2) * batch).sum(-1), 0.5),
                obs=batch[:, 0],
            )

    x, lvm = torch.randn(6, 2), vilvm.Pair(model, AutoNormal(model))
    weights = vilvm.log_weights(lvm, x, 4)
    assert "leave leading dimensions unchanged" in capsys.readouterr().out
    expected = dist.Normal(weights.latents["beta"] @ x.T, 0.5).log_prob(x[:, 0])
    torch.testing.assert_close(
        weights.log_likelihood, expected.double(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("num_samples", [1, 4])
def test_draws_come_first_with_plate_left_of_data(num_samples):
    drawn = vilvm.sample(nested(False, -1), num_samples)
    assert {n: tuple(v.shape) for n, v in drawn.items()} == {
        n: (num_samples, *s) for n, s in (("u", ()), ("v", (3,)), ("x", (3,)))
    }
    assert (
        drawn["v"].mean(1) - drawn["u"]
    ).abs().max() < 5  # v ~ N(u, 1) of the same draw
