"""Values of pyro.deterministic in posterior, predict, infer and export."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import vilvm
from vilvm.export import draws_to_datatree, to_datatree
from vilvm.weights import replicate
from vilvm.weights.generated_quantities import replay

Y = torch.tensor([1.0, 3.0, 4.0, 2.0])


def shared(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    odds = pyro.deterministic("odds", mu.exp())
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.deterministic("sum", z + odds)
        seen = pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        pyro.deterministic("residual", seen - z)


def local(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * z)
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def encoder(y):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(slope * y, 0.7))


def check(draws, shape):
    assert draws["odds"].shape == shape
    assert draws["sum"].shape == (*shape, 4)
    torch.testing.assert_close(draws["odds"], draws["mu"].exp())
    torch.testing.assert_close(draws["sum"], draws["z"] + draws["odds"][..., None])
    torch.testing.assert_close(draws["residual"], Y.to(draws["z"]) - draws["z"])


def test_posterior_of_an_autoguide_has_deterministic_values():
    lvm = vilvm.Pair(shared, AutoNormal(shared))
    draws = vilvm.posterior(lvm, Y, 10)
    assert list(draws) == ["mu", "z", "odds", "sum", "residual"]
    check(draws, (10,))


def test_posterior_of_an_encoder_has_deterministic_values():
    draws = vilvm.posterior(vilvm.Pair(local, encoder), Y, 10)
    assert torch.equal(draws["twice"], 2 * draws["z"])


def test_infer_has_deterministic_values():
    found = vilvm.infer(shared, Y, budget=10, progress=False)
    check(found.draws, (len(found.draws["mu"]),))
    frame = found.to_frame().set_index("name")
    assert frame.loc["odds", "mean"] == pytest.approx(found.draws["odds"].mean().item())
    tree = found.to_datatree(num_predictive=5)
    assert {"odds", "sum", "residual"} <= set(tree.posterior)


def test_predict_has_what_follows_from_the_latents():
    lvm = vilvm.Pair(shared, AutoNormal(shared))
    latents = {n: v[0] for n, v in vilvm.posterior(lvm, Y).items()}
    found = vilvm.predict(lvm, latents, like=Y)
    assert list(found) == [
        "y",
        "odds",
        "sum",
    ]  # a residual is of data, and there are none
    assert torch.equal(found["odds"], latents["mu"].exp())
    assert torch.equal(found["y"], latents["z"])
    without = vilvm.predict(vilvm.Pair(local, encoder), {"z": torch.ones(3)})
    assert torch.equal(without["twice"], 2 * torch.ones(3))


def test_export_has_deterministic_values_at_the_data():
    lvm = vilvm.Pair(shared, AutoNormal(shared))
    tree = to_datatree(lvm, Y, num_samples=30)
    draws = {n: torch.tensor(v.values[0]) for n, v in tree.posterior.items()}
    check(draws, (30,))
    given = {n: torch.randn(2, 5, *s) for n, s in (("mu", ()), ("z", (4,)))}
    tree = draws_to_datatree(given, shared, Y)
    residual = torch.tensor(tree.posterior["residual"].values)
    torch.testing.assert_close(residual, Y.double() - given["z"].double())
    assert tree.posterior["sum"].dims == ("chain", "draw", "data")


def test_draws_with_deterministic_values_are_accepted_back():
    lvm = vilvm.Pair(shared, AutoNormal(shared))
    draws = vilvm.posterior(lvm, Y, 10)
    assert replicate(lvm, draws, like=Y)["y"].shape == (10, 4)
    run = replay(lvm, Y, draws)
    assert torch.equal(run.deterministics["odds"], draws["odds"])


def test_values_that_depend_on_enumerated_latents_are_left_out():
    """Their draws would be of the prior."""

    def mixture(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.deterministic("kind", k)
            pyro.sample("y", dist.Normal(mu[k.long()], 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    lvm = vilvm.Pair(mixture, guide)
    assert list(vilvm.posterior(lvm, Y, 5)) == ["mu"]
    assert "kind" not in to_datatree(lvm, Y, num_samples=30).posterior
