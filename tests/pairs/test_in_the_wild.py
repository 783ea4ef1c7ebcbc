"""Pairs as users of Pyro write them; each one has revealed a fault."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import BlockAutoregressive, Planar
from torch.distributions import AffineTransform

import vilvm
from tests.pairs.oracle import pyro_elbos
from vilvm.weights import replicate
from vilvm.weights.generated_quantities import replay
from vilvm.weights.guide_density import guide_log_prob

NUM_DATA, WIDTH = 6, 2


class OneWay(AffineTransform):
    """Inverts only the value that it has just computed, like Pyro's planar flow."""

    def __init__(self, loc, scale):
        super().__init__(loc, scale, event_dim=1, cache_size=1)

    def _inverse(self, y):
        raise KeyError(
            "OneWay object expected to find key in intermediates cache but didn't"
        )


def flow(*transforms, num_data=NUM_DATA):
    """z ~ N(0, I), x ~ N(z, I); the guide draws N(0, I) and transforms it."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(WIDTH), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        base = dist.Normal(torch.zeros(len(x), WIDTH), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.TransformedDistribution(
                    base, list(transforms) or [OneWay(x / 2, 0.5**0.5)]
                ),
            )

    torch.manual_seed(0)
    return vilvm.Pair(model, guide), torch.randn(num_data, WIDTH)


def exact(x):
    return dist.Normal(0.0, 2**0.5).log_prob(x).sum(-1)


@pytest.mark.parametrize("num_samples", [1, 2, 5, NUM_DATA, 100])
def test_flows_without_an_inverse_have_log_weights(num_samples):
    lvm, x = flow()
    torch.testing.assert_close(
        vilvm.log_weights(lvm, x, num_samples).log_weight,
        exact(x).double().expand(num_samples, NUM_DATA),
        rtol=1e-5,
        atol=1e-5,
    )
    z = vilvm.posterior(lvm, x, num_samples)["z"]
    assert z.shape == (num_samples, NUM_DATA, WIDTH)
    assert replicate(lvm, {"z": z})["x"].shape == z.shape


def test_flows_without_an_inverse_are_evaluated_in_parts():
    lvm, x = flow(num_data=60)
    found = vilvm.evaluate(lvm, x, num_samples=3)
    torch.testing.assert_close(
        found.bounds["elbo"].values, exact(x).double(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "made",
    [lambda: [Planar(WIDTH), Planar(WIDTH)], lambda: [BlockAutoregressive(WIDTH)]],
)
def test_flows_without_an_inverse_have_pyros_elbo(made):
    lvm, x = flow(*made())
    elbo = vilvm.evaluate(lvm, x, num_samples=100).bounds["elbo"]
    mean, error = pyro_elbos(lvm, x, 100)
    spread = (elbo.errors.square().sum().item() + error**2) ** 0.5
    assert abs(elbo.values.sum().item() - mean) < 5 * spread


def test_given_value_of_non_invertible_flow_is_refused():
    lvm, x = flow()
    with pytest.raises(vilvm.ContractError, match="transform without an inverse"):
        guide_log_prob(lvm, x, {"z": torch.zeros(1, NUM_DATA, WIDTH)})


def test_predict_places_latents_in_their_plates():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", x.shape[1], dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(1, keepdim=True), 1.0))

    lvm, x = vilvm.Pair(model, guide), torch.randn(4, 4)
    z = vilvm.posterior(lvm, x, 1)["z"][0]
    assert torch.equal(
        vilvm.predict(lvm, {"z": z}, like=x)["x"], z[:, None].expand(4, 4)
    )


def test_replay_keeps_latents_within_their_support():
    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.deterministic("p", pyro.sample("z", dist.Beta(1.0, 1.0)))
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(1.0 + x, 2.0 - x))

    lvm, x = vilvm.Pair(model, guide), torch.ones(3)
    found = replay(lvm, x, {"z": torch.full((5, 3), 0.9999)})
    assert found.data_axes["p"] == 1
    assert torch.equal(found.deterministics["p"], torch.full((5, 3), 0.9999))


def test_data_axis_of_square_data_is_the_first():
    """A table of ratings of fixed size, so that no plate grows with the batch."""

    def model(x):
        a = pyro.sample("a", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with (
            pyro.plate("users", x.shape[0], dim=-2),
            pyro.plate("items", x.shape[1], dim=-1),
        ):
            pyro.sample("x", dist.Normal(torch.outer(a, a.new_ones(4)), 1.0), obs=x)

    def guide(x):
        pyro.sample("a", dist.Normal(x.sum(1) / 5, 0.2**0.5).to_event(1))

    lvm, x = vilvm.Pair(model, guide), torch.randn(4, 4)
    covariance = torch.eye(4) + 1.0
    evidence = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(x).sum()
    weights = vilvm.log_weights(lvm, x, 5)
    torch.testing.assert_close(
        weights.log_weight, evidence.double().expand(5), rtol=1e-5, atol=1e-4
    )
    assert vilvm.weights.find_layout(lvm, x).data_plate == "users"


def set_by_column(mean, first, second):
    mean[:, 0] = first
    mean[:, 1] += second


def set_by_index(mean, first, second):
    mean[:, 1] = second
    for row, value in zip(mean, first, strict=True):
        row.index_fill_(0, torch.tensor([0]), value)


@pytest.mark.parametrize("write", [set_by_column, set_by_index])
def test_gradients_pass_through_in_place_writes(write):
    """Writes into a tensor whose size fits one sample only."""

    def model(x):
        slope = pyro.param("slope", torch.tensor(2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(WIDTH), 1.0).to_event(1))
            mean = torch.zeros(len(x), WIDTH)
            write(mean, slope * z[:, 0], z[:, 1])
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))

    lvm, x = vilvm.Pair(model, guide), torch.randn(3, WIDTH)
    weights = vilvm.log_weights(lvm, x, 5)
    (found,) = torch.autograd.grad(weights.log_weight.sum(), list(lvm.parameters()))
    z = weights.latents["z"][..., 0].detach()
    torch.testing.assert_close(found, ((x[:, 0] - 2 * z) * z).sum())
