"""A compiled step equals the eager step, or the eager step is used: values, gradients, updates,
fallbacks.
"""

import copy
import importlib
import itertools
import re
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

import vilvm
from vilvm._compile import graph, inductor, traceable
from vilvm._runtime.random import seeded
from vilvm.data.datasets import digits
from vilvm.lvm import module_parameters
from vilvm.models.vae import VAE
from vilvm.objectives import Annealed
from vilvm.training import _loop, _preparation
from vilvm.training.compiled_step import CompiledStep
from vilvm.training.step import EagerStep
from vilvm.weights import find_layout

GALLERY = sorted(
    p.stem
    for p in (Path(__file__).parents[2] / "models").glob("*.py")
    if p.stem != "__init__"
)


def steps(
    lvm,
    batch,
    objective,
    make,
    compiler=graph,
    *,
    count=5,
    optimizer=torch.optim.Adam,
    **options,
):
    """Takes some steps from one seed; returns the step, and the loss and norm of each."""
    lines = []
    with seeded(2), module_parameters(lvm):  # starts an autoguide at a draw
        layout = find_layout(lvm, batch)
    parameters = [p for p in lvm.parameters() if p.requires_grad]
    own = {} if make is EagerStep else {"compiler": compiler, "log": lines.append}
    step = make(lvm, objective, optimizer(parameters, lr=1e-2), **options, **own)
    with seeded(1), module_parameters(lvm, frozen=True), pyro.validation_enabled(False):
        results = [
            step(batch, layout.num_data if layout.local else 1.0) for _ in range(count)
        ]
    if make is CompiledStep:
        step.settle()
    return step, results, lines


def check_alike(make, compiler=graph, **options):
    """Checks that losses, gradient norms and parameters of some steps agree.

    `make` returns a pair, a batch and an objective, the same at every call.
    """
    (lvm, batch, objective), (other, _, _) = make(), make()
    eager, expected, _ = steps(
        lvm, batch, copy.deepcopy(objective), EagerStep, **options
    )
    step, found, lines = steps(
        other, batch, copy.deepcopy(objective), CompiledStep, compiler, **options
    )
    assert not lines, lines[0]
    for a, b in zip(expected, found, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5, abs=1e-5)
        assert b.gradient_norm == pytest.approx(a.gradient_norm, rel=1e-4)
        assert a.applied
        assert b.applied
    for name, value in lvm.state_dict().items():
        torch.testing.assert_close(
            other.state_dict()[name], value, rtol=1e-4, atol=1e-5
        )
    for p, q in zip(eager.parameters, step.parameters, strict=True):
        for key, value in eager.optimizer.state[p].items():
            torch.testing.assert_close(
                step.optimizer.state[q][key], value, rtol=1e-4, atol=1e-5
            )


def gallery(name):
    module = importlib.import_module(f"vilvm.models.{name}")
    with seeded(0):
        lvm, batch = module.tiny()
    return lvm, batch, getattr(module, "objective", Trace_ELBO)()


QUICK = {
    "vae",
    "eight_schools",
    "gaussian_mixture",
}  # amortised, shared and enumerated latents


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in GALLERY],
)
def test_graph_of_every_model_equals_its_step(name):
    check_alike(partial(gallery, name))


def apart(name, compiler):
    """How a gallery model's loss or gradients differ by more than 1e-5 on the same noise."""
    lvm, batch, objective = gallery(name)
    with seeded(2), module_parameters(lvm):
        layout = find_layout(lvm, batch)
        parameters = [p for p in lvm.parameters() if p.requires_grad]
        step = CompiledStep(
            lvm, objective, torch.optim.Adam(parameters), compiler=compiler
        )
        assert step.prepare(batch, layout.num_data) is not None, step.refused
        return step.differs(batch, layout.num_data, 1e-5)


def test_graph_gradients_equal_eager_ones_to_five_digits():
    assert apart("vae", graph) is None  # the models below also by Inductor


# One model of each kind: networks, convolutions, shared latents, latents enumerated in a chain and
# in a mixture.
BY_INDUCTOR = {
    "vae",
    "conv_autoencoder",
    "eight_schools",
    "hidden_markov",
    "gaussian_mixture",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GALLERY)
def test_compiled_gradients_equal_eager_ones_to_five_digits(name):
    assert apart(name, inductor if name in BY_INDUCTOR else graph) is None


@pytest.mark.slow
def test_training_curves_agree_and_seeds_reproduce_runs():
    data = digits()
    curves = {}
    for compile in (False, True, "again"):
        for seed in range(1 if compile == "again" else 5):
            with seeded(seed):
                lvm = VAE(64, 4, encoder_hidden=(32,), decoder_hidden=(32,)).start_at(
                    data.train.x.mean(0)
                )
            fitted = vilvm.fit(
                lvm,
                data.train,
                epochs=12,
                batch_size=50,
                seed=seed,
                compile=bool(compile),
            )
            curves[compile, seed] = torch.tensor(fitted.history["elbo"])
    assert torch.equal(curves[True, 0], curves["again", 0])
    apart = torch.stack([curves[True, seed] - curves[False, seed] for seed in range(5)])
    error = apart.std(0) / 5**0.5
    # Noise is the same, so the curves differ by rounding only, which grows.
    assert (apart.mean(0).abs() <= 5 * error + 1e-3).all()
    assert apart.abs().max() < 0.2


@pytest.mark.parametrize(
    "objective",
    [
        TraceMeanField_ELBO(),
        pytest.param(
            Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
            marks=pytest.mark.slow,
        ),
        pytest.param(Trace_ELBO(num_particles=2), marks=pytest.mark.slow),
        TraceGraph_ELBO(),
        pytest.param(TraceEnum_ELBO(max_plate_nesting=1), marks=pytest.mark.slow),
        RenyiELBO(
            alpha=0, num_particles=4, vectorize_particles=True, max_plate_nesting=1
        ),
        Annealed(Trace_ELBO(), warmup=3),
    ],
    ids=[
        "mean field",
        "particles",
        "particles in turn",
        "graph",
        "enum",
        "IWAE",
        "annealed",
    ],
)
def test_every_objective_compiles(objective):
    check_alike(lambda: (*gallery("vae")[:2], objective))


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [
        (partial(torch.optim.Adam, weight_decay=0.1, betas=(0.8, 0.99)), None),
        (torch.optim.AdamW, 0.5),
        (partial(torch.optim.SGD, momentum=0.9), 0.5),
        (torch.optim.RMSprop, None),
    ],
    ids=["decay", "decoupled, clipped", "momentum, clipped", "other"],
)
def test_every_optimizer_compiles(optimizer, clip):
    check_alike(partial(gallery, "vae"), optimizer=optimizer, clip=clip)


class Noisy(torch.nn.Module):
    """Batch statistics, dropout and a constrained pyro.param."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 8, bias=False),
            torch.nn.BatchNorm1d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
        )
        self.head = torch.nn.Linear(8, 2)

    def model(self, x):
        scale = pyro.param(
            "scale", torch.tensor(0.7), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.repeat(1, 2), scale).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.head(self.net(x)), 0.5).to_event(1))


def test_batch_statistics_dropout_and_constrained_parameters():
    def make():
        with seeded(0):
            return Noisy(), torch.randn(16, 4), Trace_ELBO()

    check_alike(make)


def labelled():
    """A regression on labels as one-hot vectors, which torch checks by reading them."""
    weight = torch.nn.Parameter(torch.arange(3.0))

    def model(batch):
        label, y = batch
        mean = torch.nn.functional.one_hot(label, 3).float() @ weight
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean + z, 1.0), obs=y)

    def guide(batch):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    batch = torch.tensor([0, 2, 1, 1]), torch.tensor([0.5, 1.0, -1.0, 0.0])
    return vilvm.Pair(model, guide), batch, Trace_ELBO()


def test_one_hot_labels_compile():
    check_alike(labelled)


def test_labels_out_of_range_are_refused_by_a_compiled_step():
    lvm, (label, y), objective = labelled()
    with seeded(0), module_parameters(lvm):
        layout = find_layout(lvm, (label, y))
    adam = torch.optim.Adam(lvm.parameters())
    step = CompiledStep(lvm, objective, adam, compiler=graph)
    with module_parameters(lvm, frozen=True):
        step((label, y), layout.num_data)
        assert step.refused is None
        with pytest.raises(RuntimeError, match="smaller than num_classes"):
            step((label + 1, y), layout.num_data)


def test_learning_rate_may_change_without_a_new_graph():
    lvm, batch, objective = gallery("vae")
    other = copy.deepcopy(lvm)
    states = []
    for pair, make in ((lvm, EagerStep), (other, CompiledStep)):
        own = {} if make is EagerStep else {"compiler": graph}
        optimizer = torch.optim.Adam(pair.parameters(), lr=1e-2)
        step = make(pair, objective, optimizer, **own)
        with seeded(1), module_parameters(pair), pyro.validation_enabled(False):
            for lr in (1e-2, 1e-3, 5e-2):
                optimizer.param_groups[0]["lr"] = lr
                step(batch, len(batch))
        states.append(pair.state_dict())
    assert len(step.programs) == 1
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.m, self.calls = torch.nn.Parameter(torch.tensor(0.1)), 0

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m * x, 0.7))


class Branching(Line):
    def guide(self, x):
        if self.m > 0:
            super().guide(x)
        else:
            super().guide(-x)


class Counting(Line):
    def guide(self, x):
        self.calls += 1
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m * x * (1 + 0.1 * self.calls), 0.7))


@pytest.mark.parametrize(
    ("lvm", "reason"),
    [
        (Branching(), "Python reads the value of a tensor"),
        (Counting(), "Counting.calls changes whenever the pair is run"),
    ],
    ids=["branch", "counter"],
)
def test_untraceable_step_is_eager_with_one_message(lvm, reason):
    _, found, lines = steps(lvm, torch.randn(5), Trace_ELBO(), CompiledStep)
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert re.search(reason, lines[0])
    assert all(r.applied for r in found)
    if isinstance(lvm, Branching):
        assert "test_compiled.py" in lines[0]


def test_counter_with_late_effect_is_detected():
    class Late(Line):
        def guide(self, x):
            calls = next(self.counted)  # no guard covers it
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.m * x + (calls > 8), 0.7))

    lvm = Late()
    lvm.counted = itertools.count()
    _, _, lines = steps(lvm, torch.randn(5), Trace_ELBO(), CompiledStep, count=200)
    assert len(lines) == 1
    assert "something changes between steps in Python" in lines[0]


def test_baselines_kept_in_python_are_named():
    class Coin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logit = torch.nn.Parameter(torch.tensor(0.3))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "z",
                    dist.Bernoulli(logits=self.logit),
                    infer={"baseline": {"baseline_value": torch.ones(len(x))}},
                )

    step, _, lines = steps(Coin(), torch.randn(5), TraceGraph_ELBO(), CompiledStep)
    assert "the baseline of 'z'" in lines[0]
    assert step.refused is not None


def test_nonfinite_loss_moves_nothing():
    lvm, x = Line(), torch.randn(5)
    step, results, _ = steps(lvm, x, Trace_ELBO(), CompiledStep, count=1)
    before = copy.deepcopy(lvm.state_dict()), copy.deepcopy(step.optimizer.state_dict())
    with module_parameters(lvm), pyro.validation_enabled(False):
        result = step(torch.full((5,), float("nan")), 5.0)
    step.settle()
    assert not result.applied
    assert results[0].applied
    assert torch.equal(lvm.m, before[0]["m"])
    assert (
        step.optimizer.state_dict()["state"][0]["step"]
        == before[1]["state"][0]["step"]
        == 1
    )


def test_pyro_is_unchanged_after_a_trace():
    item, warn = torch.Tensor.item, pyro.util.warn_if_nan
    with pytest.raises(KeyError), traceable():
        raise KeyError
    assert torch.Tensor.item is item
    assert "item" not in vars(torch.Tensor)
    assert pyro.util.warn_if_nan is warn
    assert torch.tensor(2.0).item() == 2.0


def trained(folder, count, resume=False, **options):
    with seeded(1):
        lvm = VAE(6, 2, encoder_hidden=(8,), decoder_hidden=(8,))
    x = torch.bernoulli(
        torch.full((48, 6), 0.4), generator=torch.Generator().manual_seed(0)
    )
    vilvm.fit(
        lvm, x, steps=count, batch_size=16, run_dir=folder, resume=resume, **options
    )
    return lvm.state_dict()


def test_compiled_run_resumes_exactly_and_matches_eager(tmp_path, monkeypatch):
    monkeypatch.setattr("vilvm.training.compiled_step.machine_code", graph)
    whole = trained(tmp_path / "whole", 20, compile=True)
    trained(tmp_path / "parts", 11, compile=True)
    parts = trained(tmp_path / "parts", 20, resume=True, compile=True)
    eager = trained(tmp_path / "eager", 20, compile=False)
    for name, value in whole.items():
        assert torch.equal(value, parts[name])
        torch.testing.assert_close(value, eager[name], rtol=1e-3, atol=1e-4)


def test_resumed_run_stays_compiled_or_eager(tmp_path, monkeypatch):
    monkeypatch.setattr("vilvm.training.compiled_step.machine_code", graph)
    monkeypatch.setattr(_preparation, "_WORTH_COMPILING", 40)
    whole = trained(tmp_path / "whole", 30)  # too short to be compiled
    trained(tmp_path / "parts", 20)
    assert all(
        torch.equal(v, whole[n])
        for n, v in trained(tmp_path / "parts", 30, resume=True).items()
    )
    longer = trained(tmp_path / "parts", 60, resume=True)
    eager = trained(tmp_path / "eager", 60, compile=False)
    assert all(torch.equal(v, longer[n]) for n, v in eager.items())


def test_unknown_compile_choice_is_refused():
    with pytest.raises(ValueError, match="unknown compile='yes'"):
        vilvm.fit(Line(), torch.randn(5), steps=1, compile="yes")


class Rare(Line):
    """A loss that is infinite for batches with a datum below −3."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(self.m * x, torch.where(x < -3, torch.inf, 0.7))
            )


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param(None, marks=pytest.mark.slow),
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99),
    ],
    ids=["plain", "scheduled"],
)
def test_run_returns_to_a_nonfinite_compiled_step(monkeypatch, scheduler):
    monkeypatch.setattr("vilvm.training.compiled_step.machine_code", graph)
    # the longest blocks, on a slow machine too
    monkeypatch.setattr("vilvm.training._loop._SECONDS_AT_ONCE", 1e3)
    at_once = []
    monkeypatch.setattr(
        _loop.Loop,
        "_launch_block",
        lambda self, n, old=_loop.Loop._launch_block: (at_once.append(n), old(self, n))[
            1
        ],
    )
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)).clamp(-2.9, 3)
    x[::40] = -4.0
    ends = []
    for compile in (False, True):
        lvm = Rare()
        objective = Annealed(Trace_ELBO(), warmup=100)
        done = vilvm.fit(
            lvm,
            x,
            steps=160,
            batch_size=10,
            objective=objective,
            compile=compile,
            nonfinite="skip",
            scheduler=scheduler,
        )
        ends.append(
            (
                lvm.m.item(),
                done.skipped,
                objective.step,
                done.history["elbo"].tolist(),
                done.history["skipped"].tolist(),
            )
        )
    assert ends[0][1] == ends[1][1] > 25
    assert ends[0][2] == ends[1][2] == 160
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-4)
    assert ends[1][3] == pytest.approx(ends[0][3], rel=1e-4)
    assert ends[1][4] == ends[0][4]
    assert max(at_once) > 4
