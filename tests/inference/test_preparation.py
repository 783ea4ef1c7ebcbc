"""Models of every form are made ready, and the user's objects stay as they are."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample

import vilvm
from vilvm.inference._decentre import decentred
from vilvm.inference._preparation import own_model, prepare_data, target_of
from vilvm.wrappers import InFloat64

X = torch.linspace(-1, 1, 6)
BATCH = (X, 2 * X + 0.1)


def line(x, y, slope, offset):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(slope * x + offset, 1.0), obs=y)


class Forward(torch.nn.Module):
    """A module with a network that its forward runs."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)

    def forward(self, batch):
        x, y = batch
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        line(x, y, slope, self.net(x[:, None])[:, 0])


class Halves(torch.nn.Module):
    """A pair in one class, whose guide is never run."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.weight = torch.nn.Parameter(torch.tensor(0.1))

    def model(self, batch):
        return Forward.forward(self, batch)

    def guide(self, batch):
        raise AssertionError("the guide is run")


class Bayesian(PyroModule):
    """A network whose weight is a latent."""

    def __init__(self):
        super().__init__()
        self.net = PyroModule[torch.nn.Linear](1, 1)
        self.net.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.offset = PyroParam(torch.tensor(0.3))

    def forward(self, batch):
        x, y = batch
        mean = self.net(x[:, None]).squeeze(-1) + self.offset
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


class NamedModel(torch.nn.Module):
    """A module that calls a part of its own "model"."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(1, 1)

    def forward(self, batch):
        x, y = batch
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        line(x, y, slope, self.model(x[:, None])[:, 0])


def function(batch):
    x, y = batch
    offset = pyro.param("offset", torch.tensor(0.3))
    line(x, y, pyro.sample("slope", dist.Normal(0.0, 1.0)), offset)


def pair():
    return vilvm.Pair(function, AutoNormal(function))


FORMS = {
    "function": lambda: function,
    "module": Forward,
    "class of both": Halves,
    "bound method": lambda: Halves().model,
    "PyroModule": Bayesian,
    "attribute called model": NamedModel,
    "pair": pair,
    "model of a pair": lambda: pair().model,
    "pair in float64": lambda: InFloat64(pair()),
}


@pytest.mark.filterwarnings("ignore:InFloat64. samples are run")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_model_is_accepted_and_unchanged(form):
    model = FORMS[form]()
    owner = (
        model
        if isinstance(model, torch.nn.Module)
        else getattr(model, "__self__", None)
    )
    before = {n: p.clone() for n, p in owner.named_parameters()} if owner else {}
    state = torch.random.get_rng_state()
    found = vilvm.infer(model, BATCH, progress=False)
    assert found.trusted
    assert len(found.draws) == 1
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    assert not list(pyro.get_param_store())
    assert BATCH[0].dtype == torch.float32
    if owner:
        after = dict(owner.named_parameters())
        assert set(after) == set(before)
        for name, value in before.items():
            assert torch.equal(after[name], value)
            assert after[name].dtype == value.dtype
            assert after[name].grad is None


def test_trained_parameters_of_a_pair_keep_their_values():
    lvm = pair()
    vilvm.log_weights(lvm, BATCH, num_samples=2)  # makes the parameters
    with torch.no_grad():
        lvm.pyro_params["offset"].fill_(100.0)
    value = target_of(own_model(lvm), prepare_data(BATCH))(torch.zeros(1, 1).double())
    _x, y = (t.double() for t in BATCH)
    exact = (
        dist.Normal(0.0, 1.0).log_prob(torch.zeros(()))
        + dist.Normal(100.0, 1.0).log_prob(y).sum()
    )
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)


def test_global_parameters_stay():
    pyro.param("mine", torch.tensor(2.0))
    decentred(own_model(function), prepare_data(BATCH))
    target_of(own_model(function), prepare_data(BATCH))
    assert list(pyro.get_param_store()) == ["mine"]


def test_data_become_float64_except_whole_numbers():
    batch = prepare_data(
        {"y": torch.ones(3), "n": torch.arange(3), "b": torch.ones(3) > 0}
    )
    assert [batch[k].dtype for k in "ynb"] == [torch.float64, torch.int64, torch.bool]
