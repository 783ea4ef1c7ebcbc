"""The parameters and networks that belong to a pair, wherever its functions hold them."""

import copy
import functools
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Importance, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import vilvm
from vilvm.weights import find_layout

OUTSIDE = nn.Linear(1, 1)
TRAINED = {"progress": False, "optimizer": partial(torch.optim.Adam, lr=0.05)}


@pytest.fixture(autouse=True)
def _the_global_store_stays_empty():
    yield
    assert not dict(pyro.get_param_store())


@pytest.fixture
def x():
    return 2 * torch.randn(60, generator=torch.Generator().manual_seed(0))


def model(x):
    slope = pyro.param("slope", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(slope * z, 0.5), obs=x)


def guide(x):
    gain = pyro.param("gain", torch.tensor(0.1))
    scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(gain * x, scale))


def shared(x):
    """A regression with a network, under a latent that the data share."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("s", dist.LogNormal(0.0, 1.0))
    slope = pyro.param("slope", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(slope * mu.sum(-1), 1.0), obs=x)


def guided_by(run, announced=None):
    """A guide whose mean `run` computes."""

    def guide(x):
        if announced is not None:
            pyro.module("network", announced)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(run(x.unsqueeze(-1)).squeeze(-1), 0.5))

    return guide


def moods():
    """A network with all that has two modes."""
    return nn.Sequential(
        nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)
    )


def linear():
    return nn.Linear(1, 1)


def state(lvm):
    return {n: v.clone() for n, v in lvm.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# What a pair exposes
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_with_trained_parameters(x, parallel):
    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, x, steps=100, **TRAINED)
    gain, scale = (
        lvm.pyro_params["gain"].detach(),
        lvm.pyro_params["scale"].detach().exp(),
    )
    assert gain > 0.5
    draws = Predictive(lvm.model, guide=lvm.guide, num_samples=400, parallel=parallel)(
        x
    )["z"].reshape(400, -1)
    assert ((draws.mean(0) - gain * x).abs() < 6 * scale / 400**0.5).all()


def test_svi_trains_the_parameters_of_the_pair(x):
    """One step of Pyro's SVI moves them as a step of torch's Adam does; networks and PyroModules
    too.
    """
    announced, held = linear(), PyroModule[nn.Linear](1, 1)

    def decoded(x):
        pyro.module("decoder", announced)
        slope = pyro.param(
            "slope", torch.tensor(2.0), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(announced(z.unsqueeze(-1)).squeeze(-1), slope), obs=x
            )

    lvm = vilvm.Pair(decoded, guided_by(held))
    find_layout(lvm, x)
    other = copy.deepcopy(lvm)
    torch.manual_seed(1)
    SVI(lvm.model, lvm.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.1)
    torch.manual_seed(1)
    Trace_ELBO().differentiable_loss(other.model, other.guide, x).backward()
    optimizer.step()
    expected = state(other)
    assert len(expected) == 5
    for name, value in lvm.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert {id(p) for net in (announced, held) for p in net.parameters()} < {
        id(p) for p in lvm.parameters()
    }


@pytest.mark.parametrize("kind", [model, "network"])
def test_other_pyro_tools_use_the_pairs_parameters(x, kind):
    net = PyroModule[nn.Linear](1, 1)

    def with_network(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z.unsqueeze(-1)).squeeze(-1), 0.5), obs=x)

    lvm = vilvm.Pair(model if kind is model else with_network, guide)
    find_layout(lvm, x)
    with torch.no_grad():
        for p in lvm.parameters():
            p.fill_(0.7)
    before = state(lvm)
    trace = poutine.trace(lvm.model).get_trace(x)
    z, mean = trace.nodes["z"]["value"], trace.nodes["x"]["fn"].mean
    torch.testing.assert_close(mean, 0.7 * z + (0.0 if kind is model else 0.7))
    Importance(lvm.model, lvm.guide, num_samples=3).run(x)
    MCMC(NUTS(lvm.model), num_samples=2, warmup_steps=2, disable_progbar=True).run(
        x[:3]
    )
    assert same(before, state(lvm))


def test_pyros_own_loss_module_has_the_guides_parameters(x):
    lvm = vilvm.Pair(model, AutoNormal(model))
    loss = Trace_ELBO()(lvm.model, lvm.guide)
    loss(x).backward()
    assert {n for n, _ in loss.named_parameters()} == {
        "guide.locs.z_unconstrained",
        "guide.scales.z_unconstrained",
    }


def test_an_autoguide_keeps_its_attributes_and_methods(x):
    lvm = vilvm.Pair(shared, AutoNormal(shared))
    vilvm.fit(lvm, x, steps=3, **TRAINED)
    assert isinstance(lvm.guide, AutoNormal)
    median = lvm.guide.median(x)
    torch.testing.assert_close(lvm.guide.quantiles([0.5])["mu"][0], median["mu"])
    lvm = vilvm.Pair(shared, AutoDiagonalNormal(shared))
    vilvm.fit(lvm, x, steps=3, **TRAINED)
    assert lvm.guide.sample_latent(x).shape == lvm.guide.loc.shape == (3,)
    # whose median runs the guide, and so its parameter statements
    lvm = vilvm.Pair(shared, AutoDelta(shared))
    vilvm.fit(lvm, x, steps=3, **TRAINED)
    torch.testing.assert_close(lvm.guide.median(x)["mu"], lvm.guide.mu.detach())
    # runs the model, with its parameters
    lvm = vilvm.Pair(shared, AutoLaplaceApproximation(shared))
    vilvm.fit(lvm, x, steps=3, **TRAINED)
    assert lvm.guide.laplace_approximation(x).sample_latent().shape == (3,)
    lvm.guide.note = "set on the guide itself"
    assert lvm.guide.__wrapped__.note == "set on the guide itself"


def test_a_guide_can_be_replaced(x):
    lvm, net = vilvm.Pair(model, guide), linear()
    find_layout(lvm, x)
    lvm.guide = AutoNormal(model)
    assert "guide" in dict(lvm.named_children())
    lvm.guide = guided_by(net)
    assert "guide" not in dict(lvm.named_children())
    assert any(m is net for m in lvm.modules())
    find_layout(lvm, x)


def test_pair_of_a_pairs_model_shares_parameters(x):
    first = vilvm.Pair(model, guide)
    vilvm.fit(first, x, steps=20, **TRAINED)
    slope = first.pyro_params["slope"].clone()
    second = vilvm.Pair(first.model, AutoNormal(first.model))
    find_layout(second, x)
    assert any(p is first.pyro_params["slope"] for p in second.parameters())
    assert torch.equal(first.pyro_params["slope"], slope)


# What its functions hold
# ------------------------------------------------------------------------------


class Plain:
    """No module, and a user's own."""

    def __init__(self, net):
        self.net = net

    def guide(self, x):
        guided_by(lambda h: self.net(h))(x)


def _by_default(net):
    def guide(x, net=net):
        guided_by(net)(x)

    return guide


def _behind_wraps(net):
    inner = guided_by(net)

    @functools.wraps(inner)
    def guide(*args):
        return inner(*args)

    return guide


def _nested(net):
    def guide(x):
        def inner(h):
            return net(h)

        guided_by(inner)(x)

    return guide


def _by_function_called(net):
    def run(h):
        return net(h)

    return lambda x: guided_by(run)(x)


HOLDERS = {
    "closure": lambda net: guided_by(net),
    "lambda": lambda net: lambda x: guided_by(net)(x),
    "partial": lambda net: partial(lambda net, x: guided_by(net)(x), net),
    "keyword of a partial": lambda net: partial(
        lambda x, *, net: guided_by(net)(x), net=net
    ),
    "default": _by_default,
    "keyword default": lambda net: lambda x, *, net=net: guided_by(net)(x),
    "nested function": _nested,
    "function called": _by_function_called,
    "wraps": _behind_wraps,
    "bound method": lambda net: Plain(net).guide,
    "object in a closure": lambda net: (lambda plain: lambda x: plain.guide(x))(
        Plain(net)
    ),
    "list": lambda net: (lambda nets: guided_by(lambda h: nets[0](h)))([net]),
    "dict of lists": lambda net: (lambda nets: guided_by(lambda h: nets["a"][0](h)))(
        {"a": [net]}
    ),
    "handler": lambda net: poutine.scale(
        poutine.block(guided_by(net), hide=["nothing"]), scale=1.0
    ),
    "method of a module": lambda net: guided_by(net.forward),
}


@pytest.mark.parametrize("announce", [False, True])
@pytest.mark.parametrize("holder", HOLDERS)
def test_network_belongs_to_pair_whatever_refers_to_it(x, holder, announce):
    """The network is found before anything runs, trains and follows eval().

    Evaluation keeps its statistics.
    """
    net = moods()
    held = HOLDERS[holder](net)

    def announcing(x):
        pyro.module("anything", net)
        held(x)

    lvm = vilvm.Pair(model, announcing if announce else held)
    own = [n for n, m in lvm.named_modules() if m is net]
    assert len(own) == 1
    before = state(lvm)
    assert sorted(n.removeprefix(own[0] + ".") for n in before) == sorted(
        net.state_dict()
    )
    find_layout(lvm, x)
    a, b = (vilvm.posterior_mean(lvm, x)["z"] for _ in range(2))
    torch.testing.assert_close(a, b)
    net.eval()
    torch.testing.assert_close(a, net(x.unsqueeze(-1)).squeeze(-1))
    net.train()
    assert net[1].num_batches_tracked == 0
    assert net.training
    vilvm.fit(lvm, x, steps=2, **TRAINED)
    after = state(lvm)
    assert all(not torch.equal(before[n], after[n]) for n in before)
    assert after.keys() == {*before, "pyro_params.slope"}
    lvm.eval()
    assert not net[2].training
    assert lvm.double() is lvm
    assert net[0].weight.dtype == torch.float64


def test_networks_in_globals_are_found():
    def guide(x):
        def inner(h):
            return OUTSIDE(h)

        guided_by(inner)(x)

    lvm = vilvm.Pair(model, guide)
    assert [m for m in lvm.modules() if m is OUTSIDE]
    assert list(lvm.state_dict()) == [
        "pyro_modules.OUTSIDE.weight",
        "pyro_modules.OUTSIDE.bias",
    ]


def test_attributes_are_no_globals():
    """`x.OUTSIDE` names an attribute, not the global of that name."""
    lvm = vilvm.Pair(model, lambda x: x.OUTSIDE(x))
    assert not list(lvm.state_dict())


def test_part_found_first_is_named_once():
    whole = nn.Sequential(linear(), linear())
    part = whole[0]
    lvm = vilvm.Pair(lambda x: part(x), lambda x: whole(x))
    assert list(lvm.state_dict()) == [
        f"pyro_modules.whole.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")
    ]


def test_names_follow_from_the_code_alone():
    def made():
        encoder, decoder, nets = linear(), linear(), {"a": linear()}
        return vilvm.Pair(lambda x: decoder(nets["a"](x)), lambda x: encoder(x))

    first, second = made(), made()
    second.load_state_dict(first.state_dict())
    assert same(state(first), state(second))
    assert {n.split(".")[1] for n in first.state_dict()} == {
        "encoder",
        "decoder",
        "nets_a",
    }


class Hidden:
    """Holds a network that the search does not find."""

    __slots__ = ("net",)

    def __init__(self, net):
        self.net = net


class Unregistered(nn.Module):
    """A user's model that announces a network which it has not registered."""

    def __init__(self):
        super().__init__()
        self.nets = {"encoder": moods()}
        self.offset = nn.Parameter(torch.zeros(()))

    def model(self, x):
        model(x - self.offset)

    def guide(self, x):
        guided_by(self.nets["encoder"], self.nets["encoder"])(x)


def test_network_announced_in_a_run_joins_the_model(x):
    hidden = Hidden(moods())
    for lvm, net in (
        (vilvm.Pair(model, lambda x: guided_by(hidden.net, hidden.net)(x)), hidden.net),
        ((own := Unregistered()), own.nets["encoder"]),
    ):
        assert not [m for m in lvm.modules() if m is net]
        find_layout(lvm, x)
        # it was set to evaluation mode when it joined, during that run
        assert net[1].num_batches_tracked == 0
        assert net.training
        assert [n for n, m in lvm.named_modules() if m is net] == [
            "pyro_modules.network"
        ]
        before = state(lvm)
        assert {f"pyro_modules.network.{n}" for n in net.state_dict()} < before.keys()
        vilvm.fit(lvm, x, steps=2, **TRAINED)
        assert all(not torch.equal(v, before[n]) for n, v in lvm.state_dict().items())
        lvm.eval()
        assert not net.training


def test_a_hidden_pyro_module_joins_when_it_runs(x):
    hidden = Hidden(PyroModule[nn.Linear](1, 1))
    hidden.net.bias = PyroParam(torch.ones(1), dist.constraints.positive)
    lvm = vilvm.Pair(model, lambda x: guided_by(hidden.net)(x))
    vilvm.fit(lvm, x, steps=2, **TRAINED)
    assert {id(p) for p in hidden.net.parameters()} < {id(p) for p in lvm.parameters()}
    assert hidden.net.bias_unconstrained.item() != 0.0


def test_a_network_that_appears_late_is_refused(x):
    nets = [Hidden(linear())]
    lvm = vilvm.Pair(model, lambda x: guided_by(nets[-1].net, nets[-1].net)(x))

    def another(event):
        nets.append(Hidden(linear()))

    with pytest.raises(
        vilvm.ContractError, match="network 'network' appeared after training began"
    ):
        vilvm.fit(lvm, x, steps=400, callbacks=[another], **TRAINED)


def test_evaluating_in_a_callback_changes_neither_pair(x):
    first, second = (
        vilvm.Pair(
            model, (lambda h: lambda x: guided_by(h.net, h.net)(x))(Hidden(linear()))
        )
        for _ in range(2)
    )
    vilvm.fit(
        first,
        x,
        steps=60,
        callbacks=[
            lambda event: bool(vilvm.evaluate(second, x, num_samples=2)) and False
        ],
        **TRAINED,
    )
    assert len(list(first.parameters())) == len(list(second.parameters())) == 3
    assert not {id(p) for p in first.parameters()} & {
        id(p) for p in second.parameters()
    }


# PyroModules, autoguides and blocks
# ------------------------------------------------------------------------------


class Regression(PyroModule):
    """Bayesian linear regression, called with x and y."""

    def __init__(self):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0))
        self.net = PyroModule[nn.Linear](1, 1)
        self.sigma = PyroParam(torch.tensor(1.0), dist.constraints.positive)

    def forward(self, x, y):
        mean = self.slope * self.net(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample(
                "y", dist.Normal(mean.unsqueeze(-2).squeeze(-2), self.sigma), obs=y
            )


def test_pyro_module_behind_lambda_trains_like_svi(x):
    """`f = lambda b: net(*b)` is how one unpacks a batch."""
    net, losses = Regression(), []
    start = copy.deepcopy(net.state_dict())
    f = lambda b: net(*b)  # noqa: E731
    lvm = vilvm.Pair(f, AutoNormal(f, init_loc_fn=pyro.infer.autoguide.init_to_mean))
    find_layout(lvm, (x, x))
    torch.manual_seed(1)
    losses.append(Trace_ELBO().loss(lvm.model, lvm.guide, (x, x)))
    vilvm.fit(lvm, (x, x), steps=5, **TRAINED)
    assert all(not torch.equal(start[n], v) for n, v in net.state_dict().items())
    assert {n.split(".")[0] for n in lvm.state_dict()} == {"pyro_modules", "guide"}
    plain = Regression()
    plain.load_state_dict(start)
    autoguide = AutoNormal(plain, init_loc_fn=pyro.infer.autoguide.init_to_mean)
    autoguide(x, x)
    torch.manual_seed(1)
    losses.append(Trace_ELBO().loss(plain, autoguide, x, x))
    pyro.clear_param_store()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_pyro_module_in_an_autoguides_model_alone(x):
    net, guides = PyroModule[nn.Linear](1, 1), {}

    def regression(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(slope * net.bias, 1.0), obs=x)

    def called(x):
        regression(x)

    for name, lvm in {
        "autoguide": vilvm.Pair(regression, AutoNormal(called)),
        "lambda around an autoguide": vilvm.Pair(
            regression, (lambda g: lambda x: g(x))(AutoNormal(called))
        ),
        "list": vilvm.Pair(regression, _list_of(regression)),
    }.items():
        vilvm.fit(lvm, x, steps=3, **TRAINED)
        assert {id(net.bias), id(net.weight)} < {id(p) for p in lvm.parameters()}
        guides[name] = len(list(lvm.parameters()))
    assert guides == {"autoguide": 4, "lambda around an autoguide": 4, "list": 4}


def _list_of(model):
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["slope"])))
    return guide


@pytest.mark.parametrize("kind", [AutoDelta, AutoNormal, AutoDiagonalNormal])
@pytest.mark.parametrize(
    "blocked",
    [
        lambda m: poutine.block(m, expose=["mu", "s"]),
        lambda m: poutine.block(poutine.block(m, hide=["x"]), hide=["x"]),
    ],
)
def test_parameters_behind_a_block_are_trained(x, kind, blocked):
    lvm = vilvm.Pair(shared, kind(blocked(shared)))
    find_layout(lvm, x)
    with torch.no_grad():
        lvm.pyro_params["slope"].fill_(0.25)
    trace = poutine.trace(lvm.model).get_trace(x)
    torch.testing.assert_close(
        trace.nodes["x"]["fn"].mean[0], 0.25 * trace.nodes["mu"]["value"].sum()
    )
    vilvm.fit(lvm, x, steps=3, **TRAINED)
    assert lvm.pyro_params["slope"] != 0.25
    other = vilvm.Pair(shared, kind(blocked(shared)))
    find_layout(other, x)
    assert other.pyro_params["slope"] == 1.0


def test_objective_without_nesting_finds_the_parameters(x):
    """It does so behind a block, before anything else has run."""
    lvm, particles = (
        vilvm.Pair(model, guide),
        partial(Trace_ELBO, num_particles=3, vectorize_particles=True),
    )
    torch.manual_seed(1)
    guessed = particles().differentiable_loss(lvm.model, lvm.guide, x)
    assert {n for n, _ in lvm.named_parameters()} == {
        "pyro_params.slope",
        "pyro_params.gain",
        "pyro_params.scale",
    }
    torch.manual_seed(1)
    # the guess consumes the noise of one run
    poutine.replay(lvm.model, trace=poutine.trace(lvm.guide).get_trace(x))(x)
    torch.testing.assert_close(
        guessed,
        particles(max_plate_nesting=1).differentiable_loss(lvm.model, lvm.guide, x),
    )


def test_block_in_user_function_hides_no_parameter(x):
    def blocked(x):
        with poutine.block():
            gain = pyro.param("gain", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(gain * x, 0.5))

    lvm = vilvm.Pair(model, blocked)
    vilvm.fit(lvm, x, steps=3, **TRAINED)
    assert lvm.pyro_params["gain"] != 0.1


def test_pyros_internals_are_as_before_outside(x):
    from pyro.nn.module import _Context
    from pyro.params.param_store import ParamStoreDict

    with pytest.raises(vilvm.ContractError):
        find_layout(vilvm.Pair(model, lambda x: None), x)
    assert type(pyro.get_param_store()) is ParamStoreDict
    assert not hasattr(_Context, "param_state")
    assert not pyro.settings.get("module_local_params")


def test_parameter_recreated_at_each_call_is_trained(x):
    def fresh(x):
        gain = pyro.param("gain", nn.Parameter(torch.tensor(0.1)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(gain * x, 0.5))

    lvm = vilvm.Pair(model, fresh)
    vilvm.fit(lvm, x, steps=20, **TRAINED)
    assert lvm.pyro_params["gain"] > 0.4
    trace = poutine.trace(lvm.guide).get_trace(x)
    torch.testing.assert_close(trace.nodes["z"]["fn"].mean, lvm.pyro_params["gain"] * x)


# Copies and two pairs
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("called", [False, True])
def test_copy_has_its_own_networks_and_autoguide(x, called):
    net = moods()

    def decoded(x):
        pyro.module("net", net)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1) + mu, 1.0), obs=x
            )

    for autoguide in (
        AutoNormal(decoded),
        (lambda g: lambda x: g(x))(AutoNormal(decoded)),
    ):
        lvm = vilvm.Pair(decoded, autoguide)
        if called:
            vilvm.fit(lvm, x, steps=2, **TRAINED)
        before = state(lvm)
        other = copy.deepcopy(lvm)
        vilvm.fit(other, x, steps=3, **TRAINED)
        assert same(before, state(lvm))
        assert all(
            not torch.equal(v, before[n])
            for n, v in other.state_dict().items()
            if n in before
        )
        torch.manual_seed(1)
        trained = vilvm.log_weights(other, x, 2).log_weight
        lvm.load_state_dict(other.state_dict())
        find_layout(lvm, x)
        torch.manual_seed(1)
        assert torch.equal(trained, vilvm.log_weights(lvm, x, 2).log_weight)


def test_two_pairs_of_the_same_functions_are_independent(x):
    first, second = vilvm.Pair(model, guide), vilvm.Pair(model, guide)
    find_layout(second, x)
    before = state(second)
    vilvm.fit(first, x, steps=3, **TRAINED)
    SVI(first.model, first.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x)
    assert same(before, state(second))
    assert not same(before, state(first))


# Loading before the first call
# ------------------------------------------------------------------------------


GUIDES = {
    "function": lambda: guide,
    "normal": lambda: AutoNormal(model),
    "delta": lambda: AutoDelta(model),
    "multivariate": lambda: AutoMultivariateNormal(model),
    "flow": lambda: AutoIAFNormal(model),
    "lambda": lambda: (lambda autoguide: lambda x: autoguide(x))(AutoNormal(model)),
    "hidden": lambda: (lambda hidden: lambda x: guided_by(hidden.net, hidden.net)(x))(
        Hidden(moods())
    ),
}


@pytest.mark.parametrize("kind", GUIDES)
def test_a_state_is_loaded_before_the_first_call(x, kind):
    x = x[:6]
    lvm = vilvm.Pair(model, GUIDES[kind]())
    vilvm.fit(lvm, x, steps=3, **TRAINED)
    trained = state(lvm)
    torch.manual_seed(1)
    loss = Trace_ELBO().loss(lvm.eval().model, lvm.guide, x)
    new = vilvm.Pair(model, GUIDES[kind]())
    for _ in range(2):
        new.load_state_dict(trained)
    assert same(state(new), trained)
    new = copy.deepcopy(new)
    torch.manual_seed(2)
    Trace_ELBO().loss(new.eval().model, new.guide, x)
    assert same(state(new), trained)
    again = vilvm.Pair(model, GUIDES[kind]())
    again.load_state_dict(trained)
    find_layout(again, x)
    torch.manual_seed(1)
    assert Trace_ELBO().loss(again.eval().model, again.guide, x) == loss


@pytest.mark.parametrize("kind", GUIDES)
def test_state_of_other_sizes_is_always_refused(x, kind):
    x = x[:6]
    lvm = vilvm.Pair(model, GUIDES[kind]())
    find_layout(lvm, x)
    wrong = {
        n: v if n == "pyro_params.slope" else torch.zeros(7, 2)
        for n, v in lvm.state_dict().items()
    }
    new = vilvm.Pair(model, GUIDES[kind]())
    new.load_state_dict(wrong)
    for _ in range(2):
        with pytest.raises(
            vilvm.ContractError,
            match=r"has shape .* here, and \(7, 2\) in the state_dict that was loaded",
        ):
            find_layout(new, x)


def test_a_state_of_another_guide_is_refused(x):
    lvm = vilvm.Pair(model, AutoNormal(model))
    find_layout(lvm, x)
    new = vilvm.Pair(model, AutoDiagonalNormal(model))
    new.load_state_dict(lvm.state_dict())
    with pytest.raises(
        vilvm.ContractError,
        match=r"is not in the state_dict that was loaded|is not here",
    ):
        find_layout(new, x)


def test_state_key_without_parameter_is_refused():
    with pytest.raises(RuntimeError, match="Unexpected key"):
        vilvm.Pair(model, guide).load_state_dict({"nothing": torch.zeros(1)})


def test_run_resumes_in_a_new_pair(x):
    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, x, steps=40, **TRAINED)
    new = vilvm.Pair(model, guide)
    new.load_state_dict(lvm.state_dict())
    for pair in (lvm, new):
        vilvm.fit(pair, x, steps=3, **TRAINED)
    assert same(state(lvm), state(new))


# Batches of several tensors
# ------------------------------------------------------------------------------


def of_two(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(x, 1.0)), 1.0), obs=y)


@pytest.mark.parametrize("several", [False, True])
def test_model_of_two_arguments_error_says_unpack(x, several):
    batch = (x, x) if several else x
    for lvm, part in (
        (vilvm.Pair(of_two, AutoNormal(of_two)), "guide"),
        (vilvm.Pair(of_two, lambda b: None), "model"),
    ):
        with pytest.raises(
            vilvm.ContractError,
            match=rf"'y'\. The {part} gets one argument, .* as one tuple, \(x, y\)",
        ):
            find_layout(lvm, batch)


def test_wrong_call_in_user_code_is_unchanged():
    def broken(x):
        of_two(x)

    with pytest.raises(
        vilvm.ContractError, match=r"in broken, test_parameters\.py"
    ) as error:
        find_layout(vilvm.Pair(broken, lambda x: None), torch.zeros(3))
    assert "unpack" not in str(error.value)
