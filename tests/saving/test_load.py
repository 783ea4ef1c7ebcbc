"""Models of the user: pairs, autoguides, wrappers, priors, dtypes, run folders."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from torch import nn

import vilvm
from vilvm.guides import IAF
from vilvm.lvm import rebuildable
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.eight_schools import EightSchools, eight_schools
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.networks import gated_mlp, mlp
from vilvm.priors import Mixture, VampPrior, fit_prior
from vilvm.wrappers import (
    InFloat64,
    fit_guide,
    fit_likelihood_scale,
    partly_observed,
    with_guide,
    with_prior,
    with_prior_guide,
)

X = torch.rand(60, 6, generator=torch.Generator().manual_seed(0)).round()


def elbo(lvm, x=X):
    return vilvm.evaluate(lvm, x, num_samples=5).bounds["elbo"].values


def assert_same_state(first, second):
    assert {n: v.dtype for n, v in first.items()} == {
        n: v.dtype for n, v in second.items()
    }
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# Pairs
# ----------------------------------------------------------------------------------------


def shared_model(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


def list_of_guides(model):
    guides = autoguide.AutoGuideList(model)
    guides.append(autoguide.AutoNormal(poutine.block(model, hide=["scale"])))
    guides.append(autoguide.AutoDiagonalNormal(poutine.block(model, expose=["scale"])))
    return guides


GUIDES = [
    autoguide.AutoNormal,
    pytest.param(autoguide.AutoMultivariateNormal, marks=pytest.mark.slow),
    pytest.param(autoguide.AutoLowRankMultivariateNormal, marks=pytest.mark.slow),
    pytest.param(autoguide.AutoIAFNormal, marks=pytest.mark.slow),
    list_of_guides,
]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: g.__name__)
def test_autoguide_loads_before_its_first_call(tmp_path, guide):
    lvm = vilvm.Pair(shared_model, guide(shared_model))
    vilvm.fit(lvm, X, steps=5)
    path = vilvm.save(lvm, tmp_path / "pair")
    again = vilvm.load(path, vilvm.Pair(shared_model, guide(shared_model)))
    # 60 data: evaluate first tries a batch of 50, and starts the guide anew for all of them
    assert torch.equal(elbo(again), elbo(lvm))
    assert_same_state(lvm.state_dict(), again.state_dict())


def test_loaded_model_is_saved_before_its_first_call(tmp_path):
    lvm = vilvm.Pair(shared_model, autoguide.AutoNormal(shared_model))
    vilvm.fit(lvm, X, steps=5)
    path = vilvm.save(lvm, tmp_path / "first")
    for name in ("second", "third"):
        again = vilvm.load(
            path, vilvm.Pair(shared_model, autoguide.AutoNormal(shared_model))
        )
        path = vilvm.save(again, tmp_path / name)
    assert torch.equal(elbo(again), elbo(lvm))


def test_loaded_autoguide_answers_before_its_first_call(tmp_path):
    lvm = vilvm.Pair(shared_model, autoguide.AutoNormal(shared_model))
    vilvm.fit(lvm, X, steps=5)
    path = vilvm.save(lvm, tmp_path / "pair")
    again = vilvm.load(
        path, vilvm.Pair(shared_model, autoguide.AutoNormal(shared_model))
    )
    with pytest.raises(vilvm.ContractError, match=r"call lvm.guide\(batch\) once"):
        again.guide.quantiles([0.5])
    assert torch.equal(again.guide.median(X)["loc"], lvm.guide.median(X)["loc"])


def test_autoguide_without_parameters_is_not_saved(tmp_path):
    lvm = vilvm.Pair(shared_model, autoguide.AutoNormal(shared_model))
    with pytest.raises(vilvm.ContractError, match="call its guide once with a batch"):
        vilvm.save(lvm, tmp_path / "pair")


def factor_model(x, decoder=None):
    decoder = pyro.module("decoder", nn.Linear(2, 6)) if decoder is None else decoder
    noise = pyro.param("noise", torch.tensor(1.0), dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)


def factor_guide(x, name="slope"):
    slope = pyro.param(name, torch.ones(6, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ slope, 1.0).to_event(1))


def factor_pair(name="slope"):
    decoder = nn.Linear(2, 6)
    return vilvm.Pair(
        lambda x: factor_model(x, decoder), lambda x: factor_guide(x, name)
    )


def test_parameters_of_functions_load_before_the_first_call(tmp_path):
    lvm = factor_pair()
    vilvm.fit(lvm, X, steps=5)
    path = vilvm.save(lvm, tmp_path / "pair")
    again = vilvm.load(path, factor_pair())
    assert torch.equal(elbo(again), elbo(lvm))
    assert_same_state(lvm.state_dict(), again.state_dict())


def test_a_parameter_that_the_file_lacks_is_not_invented(tmp_path):
    lvm = factor_pair()
    vilvm.fit(lvm, X, steps=5)
    path = vilvm.save(lvm, tmp_path / "pair")
    other = vilvm.load(path, factor_pair("gradient"))
    with pytest.raises(vilvm.ContractError, match=r"'gradient'.* is not in .*pair"):
        elbo(other)
    used = factor_pair("gradient")
    elbo(used)
    with pytest.raises(vilvm.ContractError, match=r"lacks 'pyro_params.gradient'"):
        vilvm.load(path, used)


# Wrappers, priors and arguments that are models
# ----------------------------------------------------------------------------------------


def wrapped():
    torch.manual_seed(0)
    auto, ppca = Autoencoder(6, 2, hidden=(8,)), PPCA(6, 2)
    vae = VAE(6, 2, encoder_hidden=(8,), decoder_hidden=(8,))
    prior = fit_prior(auto, X, "mixture", components=2)
    stochastic, _ = fit_guide(with_prior(auto, prior), X, epochs=1, hidden=(8,))
    flow = fit_prior(vae, X, "flow", steps=5, progress=False)
    return {
        "fit_guide": stochastic,
        "flow": with_prior(vae, flow),
        "scale": with_prior_guide(fit_likelihood_scale(ppca, X)),
        "mask": partly_observed(vae, torch.arange(6) < 3),
        "guide": with_guide(ppca, mlp(6, (8,), 4, nn.Tanh)),
        "float64": InFloat64(PPCA(6, 2)),
        "vamp": VAE(6, 2, prior=VampPrior(X[:5], bounds=(0, 1))),
        "mixture": VAE(6, 2, prior=Mixture(2), head=IAF(2), network=gated_mlp),
    }


@pytest.mark.slow
def test_wrappers_and_priors_are_made_again(tmp_path):
    for name, lvm in wrapped().items():
        with torch.no_grad():
            for p in lvm.parameters():
                if p.requires_grad:
                    p.add_(0.01 * torch.randn_like(p))
        again = vilvm.load(vilvm.save(lvm, tmp_path / name))
        assert type(again) is type(lvm)
        assert torch.equal(elbo(again), elbo(lvm)), name
        assert_same_state(lvm.state_dict(), again.state_dict())
        trained = [p.requires_grad for p in lvm.parameters()]
        assert [p.requires_grad for p in again.parameters()] == trained


def test_wrapped_autoguide_loads_before_its_first_call(tmp_path):
    data = eight_schools().x
    lvm = InFloat64(EightSchools(guide="mean_field"))
    vilvm.fit(lvm, data, steps=3)
    again = vilvm.load(vilvm.save(lvm, tmp_path / "schools"))
    assert torch.equal(elbo(again, data), elbo(lvm, data))


def test_wrapper_with_a_mask_is_made_again(tmp_path):
    vae = VAE(6, 2, prior=Mixture(2, components=3), network=gated_mlp)
    lvm = partly_observed(vae, torch.arange(6) < 3)
    again = vilvm.load(vilvm.save(lvm, tmp_path / "mask"))
    assert_same_state(lvm.state_dict(), again.state_dict())
    assert torch.equal(elbo(again), elbo(lvm))


# Classes of the user, dtypes, devices, modes
# ----------------------------------------------------------------------------------------


@rebuildable
class Mine(PPCA):
    def __init__(self, width: int, *, network: nn.Module | None = None):
        super().__init__(6, width)
        self.network = network


def test_class_of_the_user_is_passed_to_load(tmp_path):
    path = vilvm.save(Mine(3), tmp_path / "mine")
    assert vilvm.load(path, Mine).W.shape == (6, 3)
    with pytest.raises(vilvm.CheckpointError, match="may name; pass the model"):
        vilvm.load(path)
    with pytest.raises(vilvm.ContractError, match=r"and not a .*VAE"):
        vilvm.load(path, VAE)


def test_argument_that_no_file_can_hold_is_named(tmp_path):
    path = vilvm.save(Mine(3, network=nn.Linear(2, 2)), tmp_path / "mine")
    with pytest.raises(vilvm.CheckpointError, match="its argument network is a Linear"):
        vilvm.load(path, Mine)
    lvm = vilvm.load(path, Mine(3, network=nn.Linear(2, 2)))
    assert lvm.W.shape == (6, 3)


def test_dtype_mode_and_generators_are_kept(tmp_path):
    path = vilvm.save(PPCA(6, 2).double(), tmp_path / "ppca")
    state = torch.get_rng_state()
    lvm = vilvm.load(path, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert lvm.W.dtype == torch.float64
    assert not lvm.training
    assert vilvm.load(path, PPCA(6, 2).double()).training
    with pytest.raises(vilvm.ContractError, match=r"float64 in .*float32 in the model"):
        vilvm.load(path, PPCA(6, 2))


def test_frozen_parameters_stay_frozen(tmp_path):
    lvm = PPCA(6, 2)
    lvm.W.requires_grad_(False)
    again = vilvm.load(vilvm.save(lvm, tmp_path / "ppca"))
    assert [n for n, p in again.named_parameters() if not p.requires_grad] == ["W"]


# Run folders
# ----------------------------------------------------------------------------------------


def test_run_folder_gives_its_best_parameters(tmp_path):
    lvm = PPCA(6, 2)
    vilvm.fit(lvm, X[:40], epochs=3, validation=X[40:], run_dir=tmp_path / "run")
    again = vilvm.load(tmp_path / "run", PPCA(6, 2))
    assert_same_state(lvm.state_dict(), again.state_dict())
    with pytest.raises(vilvm.CheckpointError, match="pass the model"):
        vilvm.load(tmp_path / "run")
    with pytest.raises(vilvm.CheckpointError, match="holds no checkpoint"):
        vilvm.load(tmp_path, PPCA(6, 2))
    with pytest.raises(vilvm.ContractError, match="'W' has shape"):
        vilvm.load(tmp_path / "run", PPCA(6, 3))


def test_run_folder_of_an_autoguide_opens_before_its_first_call(tmp_path):
    data = eight_schools().x
    lvm = EightSchools()
    vilvm.fit(lvm, data, steps=3, run_dir=tmp_path)
    again = vilvm.load(tmp_path, EightSchools())
    assert torch.equal(elbo(again, data), elbo(lvm, data))


def test_folder_of_the_command_line_opens_as_its_file(tmp_path):
    lvm = PPCA(4, 2)
    vilvm.save(lvm, tmp_path / "model.safetensors")
    assert torch.equal(vilvm.load(tmp_path).W, lvm.W)
