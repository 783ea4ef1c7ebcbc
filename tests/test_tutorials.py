"""Pyro's tutorials' models, written as their authors write them, as pairs: they train, and their loss is Pyro's on the same noise.

The expected loss is of the same code run by ``Trace_ELBO`` with Pyro's own global store, from the same seed and parameters.
"""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import vilvm
from vilvm.weights import layout

# A look at the data that cannot be vectorised does not stop training here: what is tested is whose parameters a pair has.
TRAINED = {"progress": False, "optimizer": partial(torch.optim.Adam, lr=0.01), "nonfinite": "skip"}


def vae():
    """https://pyro.ai/examples/vae.html: a module whose methods announce its networks, here without their batch norm."""

    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 4))
            self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 6), nn.Sigmoid())

        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 2), x.new_ones(x.shape[0], 2)).to_event(1))
                pyro.sample("obs", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", x.shape[0]):
                loc, log_scale = self.encoder(x).chunk(2, -1)
                pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    made = VAE()
    return made.model, made.guide, torch.bernoulli(torch.full((20, 6), 0.4)), Trace_ELBO


def plain_ss_vae():
    """https://pyro.ai/examples/ss-vae.html, all data labelled, of a class that is no module."""

    class SSVAE:
        def __init__(self):
            self.encoder_y = nn.Sequential(nn.Linear(6, 3), nn.Softmax(-1))
            self.encoder_z = nn.Sequential(nn.Linear(9, 8), nn.Softplus(), nn.Dropout(0.2), nn.Linear(8, 4))
            self.decoder = nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 6), nn.Sigmoid())

        def model(self, xs, ys):
            pyro.module("ss_vae", nn.ModuleList([self.decoder, self.encoder_y, self.encoder_z]))
            with pyro.plate("data", len(xs)):
                zs = pyro.sample("z", dist.Normal(xs.new_zeros(len(xs), 2), 1.0).to_event(1))
                pyro.sample("y", dist.OneHotCategorical(xs.new_ones(len(xs), 3) / 3.0), obs=ys)
                pyro.sample("x", dist.Bernoulli(self.decoder(torch.cat([zs, ys], -1))).to_event(1), obs=xs)

        def guide(self, xs, ys):
            with pyro.plate("data", len(xs)):
                loc, log_scale = self.encoder_z(torch.cat([xs, ys], -1)).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    made = SSVAE()
    x, y = torch.bernoulli(torch.full((20, 6), 0.4)), torch.eye(3)[torch.arange(20) % 3]
    return lambda b: made.model(*b), lambda b: made.guide(*b), (x, y), Trace_ELBO


def bayesian_regression():
    """https://pyro.ai/examples/bayesian_regression.html."""

    class BayesianRegression(PyroModule):
        def __init__(self, in_features, out_features):
            super().__init__()
            self.linear = PyroModule[nn.Linear](in_features, out_features)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([out_features, in_features]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([out_features]).to_event(1))

        def forward(self, x, y=None):
            sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
            return mean

    made, x = BayesianRegression(3, 1), torch.randn(20, 3)
    model = lambda b: made(*b)  # noqa: E731
    return model, AutoDiagonalNormal(model), (x, x.sum(-1)), Trace_ELBO


def bnn():
    """A Bayesian network of two layers, as in https://pyro.ai/examples/modules.html, with a scale that is a parameter."""

    class BNN(PyroModule):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = PyroModule[nn.Linear](1, 5), PyroModule[nn.Linear](5, 1)
            self.fc1.weight = PyroSample(dist.Normal(0.0, 1.0).expand([5, 1]).to_event(2))
            self.fc2.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 5]).to_event(2))

        def forward(self, x, y=None):
            mean = self.fc2(torch.tanh(self.fc1(x.reshape(-1, 1)))).squeeze(-1)
            sigma = pyro.param("sigma", torch.tensor(0.5), constraint=dist.constraints.positive)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("obs", dist.Normal(mean, sigma), obs=y)

    made, x = BNN(), torch.linspace(-1, 1, 20)
    model = lambda b: made(*b)  # noqa: E731
    return model, AutoDiagonalNormal(made_for(model)), (x, x.sin()), Trace_ELBO


def made_for(model):
    """Another lambda around it, as where an autoguide is made in another cell than the pair."""
    return lambda batch: model(batch)


def mixture():
    """https://pyro.ai/examples/gmm.html, with a parameter for the width of its prior."""

    @config_enumerate
    def model(data):
        width = pyro.param("width", torch.tensor(10.0), constraint=dist.constraints.positive)
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, width))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    guide = AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]))
    return model, guide, torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0]), partial(TraceEnum_ELBO, max_plate_nesting=1)


def cvae():
    """https://pyro.ai/examples/cvae.html in plain functions: two networks of the guide's and one of the model's, with dropout."""
    prior, recognition = nn.Linear(3, 4), nn.Sequential(nn.Linear(9, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    generation = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))

    def model(batch):
        xs, ys = batch
        pyro.module("prior_net", prior)
        pyro.module("generation_net", generation)
        with pyro.plate("data", len(xs)):
            loc, log_scale = prior(xs).chunk(2, -1)
            zs = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("y", dist.Bernoulli(logits=generation(torch.cat([zs, xs], -1))).to_event(1), obs=ys)

    def guide(batch):
        xs, ys = batch
        pyro.module("recognition_net", recognition)
        with pyro.plate("data", len(xs)):
            loc, log_scale = recognition(torch.cat([xs, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, (torch.randn(20, 3), torch.bernoulli(torch.full((20, 6), 0.4))), Trace_ELBO


def linear_regression():
    """https://pyro.ai/examples/intro_long.html: a function with plain latents, under AutoNormal."""

    def model(batch):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("bA", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        with pyro.plate("data", len(batch[0])):
            pyro.sample("obs", dist.Normal(a + b * batch[0], sigma), obs=batch[1])

    x = torch.linspace(-1, 1, 20)
    return model, AutoNormal(model), (x, 2 * x + 1), Trace_ELBO


TUTORIALS = [vae, plain_ss_vae, bayesian_regression, bnn, mixture, cvae, linear_regression]


def made(tutorial):
    torch.manual_seed(0)
    return tutorial()


def pyros_loss(tutorial, lvm, mode):
    """The loss of the same code under Pyro's own store, from the same parameters, and the noise that follows."""
    model, guide, batch, objective = made(tutorial)
    twin = vilvm.Pair(model, guide)
    layout(twin, batch)
    twin.load_state_dict(lvm.state_dict())
    twin.train(mode)
    for name, value in getattr(twin, "pyro_params", {}).items():  # the only thing that Pyro would not find in its modules
        constraint = twin.__dict__["_pyro_constraints"][name]
        pyro.get_param_store().setdefault(name, torch.distributions.transform_to(constraint)(value.detach()), constraint)
    torch.manual_seed(1)
    loss = objective().loss(model, guide, batch)
    pyro.clear_param_store()
    return loss


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda t: t.__name__)
@pytest.mark.parametrize("mode", [True, False])
def test_the_loss_is_pyros_on_the_same_noise(tutorial, mode):
    model, guide, batch, objective = made(tutorial)
    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, batch, steps=3, objective=objective(), **TRAINED)
    lvm.train(mode)
    expected = pyros_loss(tutorial, copy.deepcopy(lvm), mode)
    torch.manual_seed(1)
    assert objective().loss(lvm.model, lvm.guide, batch) == pytest.approx(expected, rel=1e-6)
    assert not dict(pyro.get_param_store())


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda t: t.__name__)
def test_training_moves_every_parameter_that_svi_moves(tutorial):
    model, guide, batch, objective = made(tutorial)
    lvm = vilvm.Pair(model, guide)
    layout(lvm, batch)
    before = {n: p.detach().clone() for n, p in lvm.named_parameters()}
    vilvm.fit(lvm, batch, steps=2, objective=objective(), **TRAINED)
    moved = {n.split(".")[-1] for n, p in lvm.named_parameters() if not torch.equal(p, before[n])}
    assert not dict(pyro.get_param_store())
    model, guide, batch, objective = made(tutorial)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), objective())
    svi.step(batch)
    start = {n: v.detach().clone() for n, v in pyro.get_param_store().items()}
    svi.step(batch)
    by_svi = {n for n, v in pyro.get_param_store().items() if not torch.equal(v, start[n])}
    pyro.clear_param_store()
    assert by_svi
    assert {n.split("$$$")[-1].split(".")[-1] for n in by_svi} <= {n.removesuffix("_unconstrained") for n in moved}


@pytest.mark.parametrize("tutorial", [vae, linear_regression], ids=lambda t: t.__name__)
def test_evaluation_agrees_with_pyros_loss(tutorial):
    """The ELBO is a mean of Pyro's losses in evaluation mode, within 5 Monte Carlo standard errors of both."""
    model, guide, batch, objective = made(tutorial)
    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, batch, steps=3, objective=objective(), **TRAINED)
    lvm.eval()
    losses = torch.tensor([objective().loss(lvm.model, lvm.guide, batch) for _ in range(50)], dtype=torch.float64)
    with torch.no_grad():
        elbo = vilvm.log_weights(lvm, batch, 50).log_weight.double().reshape(50, -1).sum(1)
    error = ((losses.var() + elbo.var()) / 50).sqrt()
    assert abs(float(losses.mean() + elbo.mean())) < 5 * float(error)


def test_what_a_cvae_predicts_is_in_evaluation_mode():
    """Its networks, announced in plain functions, neither drop nor move statistics where the pair is evaluated."""
    model, guide, batch, _ = made(cvae)
    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, batch, steps=3, **TRAINED)
    before = copy.deepcopy(lvm.state_dict())
    first, second = (vilvm.posterior_mean(lvm, batch)["z"] for _ in range(2))
    torch.testing.assert_close(first, second)
    draws = Predictive(lvm.eval().model, guide=lvm.guide, num_samples=100)(batch)["z"].squeeze()
    error = draws.std(0) / 100**0.5
    assert ((draws.mean(0) - first).abs() < 6 * error).all()
    assert all(torch.equal(before[n], v) for n, v in lvm.state_dict().items())
