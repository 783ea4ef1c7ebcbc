"""Models around other models: parameters of the inner model stay in the inner model."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.evaluation import compare
from vilvm.models.vae import VAE
from vilvm.networks import mlp
from vilvm.priors import FittedPrior, fit_prior
from vilvm.wrappers import fit_guide, with_guide, with_prior, with_prior_guide
from vilvm.wrappers.likelihood_scale import fit_likelihood_scale
from vilvm.wrappers.partly_observed import partly_observed


def model(x):
    slope = pyro.param("slope", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(slope * z, 0.5).to_event(1), obs=x)


def guide(x):
    gain = pyro.param("gain", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(gain * x, 0.4).to_event(1))


@pytest.fixture(scope="module")
def x():
    return 2 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair(x):
    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, x, steps=300, optimizer=partial(torch.optim.Adam, lr=0.02))
    return lvm


def prior():
    return FittedPrior(
        "z", "diagonal", {"mean": torch.zeros(2), "scale": torch.ones(2)}
    )


WRAPPERS = {
    "prior": lambda lvm, x: with_prior(lvm, prior()),
    "part": lambda lvm, x: partly_observed(lvm, torch.tensor([True, True])),
    "guide": lambda lvm, x: with_guide(lvm, mlp(2, (), 4)),
    "around": lambda lvm, x: with_guide(lvm, mlp(2, (), 4), around=True),
    "prior as guide": lambda lvm, x: with_prior_guide(lvm),
    "noise": lambda lvm, x: fit_likelihood_scale(lvm, x),
    "two": lambda lvm, x: with_prior_guide(with_prior(lvm, prior())),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_trained_parameters_are_kept(name, pair, x):
    wrapped = WRAPPERS[name](pair, x)
    own = {n: v.clone() for n, v in pair.state_dict().items()}
    assert abs(own["pyro_params.slope"] - 1) > 0.1
    slope = own["pyro_params.slope"]
    means = vilvm.predict(wrapped, {"z": torch.ones(3, 2)})["x"]
    torch.testing.assert_close(means, slope.expand(3, 2))
    weights = vilvm.log_weights(wrapped, x[:5], 3)
    assert torch.isfinite(weights.log_weight).all()
    assert not [n for n, _ in wrapped.named_parameters() if n.startswith("pyro_params")]
    if name in ("prior", "part", "noise"):
        torch.testing.assert_close(
            vilvm.posterior_mean(wrapped, x[:5])["z"], own["pyro_params.gain"] * x[:5]
        )


def test_wrapper_training_trains_or_freezes_the_pair(pair, x):
    lvm = copy.deepcopy(pair)
    before = {n: v.clone() for n, v in lvm.state_dict().items()}
    guided, _ = fit_guide(lvm, x, epochs=2)
    assert all(torch.equal(before[n], v) for n, v in lvm.state_dict().items())
    assert all(torch.equal(before[n], v) for n, v in guided.lvm.state_dict().items())
    vilvm.fit(
        with_prior(lvm, prior()),
        x,
        steps=3,
        optimizer=partial(torch.optim.Adam, lr=0.1),
    )
    assert all(not torch.equal(before[n], v) for n, v in lvm.state_dict().items())


def test_unsupported_models_are_refused():
    class Plain:
        def model(self, x): ...

        def guide(self, x): ...

    for wrap in (
        lambda lvm: with_prior(lvm, prior()),
        with_prior_guide,
        lambda lvm: with_guide(lvm, mlp(2, (), 4)),
    ):
        with pytest.raises(
            vilvm.ContractError,
            match=r"Plain is not a torch.nn.Module, as a wrapper needs",
        ):
            wrap(Plain())


def test_prior_of_missing_latent_is_refused(pair, x):
    other = FittedPrior(
        "code", "diagonal", {"mean": torch.zeros(2), "scale": torch.ones(2)}
    )
    with pytest.raises(
        vilvm.ContractError,
        match=r"prior is of latent 'code', which Pair does not have",
    ):
        vilvm.log_weights(with_prior(pair, other), x)


def test_subset_is_not_ranked_with_whole_data():
    x = torch.bernoulli(torch.full((20, 6), 0.5))
    lvm = VAE(6, 2)
    half = partly_observed(lvm, torch.arange(6) < 3)
    all_of_it = partly_observed(lvm, torch.ones(6).bool())
    found = compare(
        {"whole": lvm, "half": half, "all": all_of_it}, x, num_samples=5, num_draws=0
    )
    assert [[row.name for row in rows] for rows in found.groups().values()] in (
        [["whole", "all"], ["half"]],
        [["all", "whole"], ["half"]],
    )
    with pytest.raises(ValueError, match=r"differ in likelihood .*in part, mask"):
        found.difference("whole", "half")


def test_flow_is_copied_after_any_use():
    x = torch.bernoulli(torch.full((60, 6), 0.5))
    lvm = VAE(6, 2)
    flow = with_prior(lvm, fit_prior(lvm, x, "flow", steps=20))
    vilvm.log_weights(flow, x, 2)
    compare({"flow": flow}, x, num_samples=2, num_draws=0)
    again = copy.deepcopy(flow)
    torch.testing.assert_close(
        again.prior.distribution().log_prob(torch.zeros(2)),
        flow.prior.distribution().log_prob(torch.zeros(2)),
    )


def test_guide_has_the_precision_of_the_model():
    x = torch.randn(50, 2).double()

    class Double(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.ones(()).double())

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
                )
                pyro.sample("x", dist.Normal(self.slope * z, 0.5).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    guided, _ = fit_guide(Double(), x, epochs=1)
    assert vilvm.posterior(guided, x)["z"].dtype == torch.float64
    with pytest.raises(
        ValueError,
        match=r"flow has single precision, and the codes are torch.float64",
    ):
        fit_prior(Double(), x, "flow")


def test_a_guide_for_pictures_needs_an_encoder():
    class Pictures(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                mean = z.sum(-1)[..., None, None, None] + self.shift
                pyro.sample(
                    "x",
                    dist.Normal(mean, 1.0)
                    .expand((*mean.shape[:-3], 1, 4, 4))
                    .to_event(3),
                    obs=x,
                )

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    x = torch.randn(20, 1, 4, 4)
    with pytest.raises(
        vilvm.ContractError,
        match=r"a datum has shape \(1, 4, 4\) and is not a row of numbers; pass encoder=",
    ):
        fit_guide(Pictures(), x)
    guided, _ = fit_guide(
        Pictures(), x, torch.nn.Sequential(torch.nn.Flatten(), mlp(16, (), 4)), epochs=1
    )
    assert vilvm.posterior(guided, x)["z"].shape == (1, 20, 2)
