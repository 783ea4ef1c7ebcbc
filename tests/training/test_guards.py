"""Python state that changes during a compiled run: its numbers equal those of the eager run, or it
goes back and logs why.
"""

import argparse
import random
import re
import sys
import types
from collections import deque
from functools import cache, partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import vilvm
from vilvm._compile import Guards, graph

STEPS, MOVED_AT = 130, 50
FLAG = False
WEIGHT = 0.1


class Weighted(torch.nn.Module):
    """A line whose rate has the weight that a subclass defines."""

    def __init__(self):
        super().__init__()
        self.m, self.s = (
            torch.nn.Parameter(torch.tensor(0.1)),
            torch.nn.Parameter(torch.tensor(0.0)),
        )

    def weight(self):
        raise NotImplementedError

    def model(self, x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=self.weight()):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)), poutine.scale(scale=self.weight()):
            pyro.sample("z", dist.Normal(self.m * x, self.s.exp()))


class Attribute(Weighted):
    def __init__(self):
        super().__init__()
        self.beta = 0.1

    def weight(self):
        return self.beta

    def move(self):
        self.beta = 1.0


class OfClass(Weighted):
    beta = 0.1

    def weight(self):
        return self.beta

    def move(self):
        self.beta = 1.0


class ByName(Attribute):
    def weight(self):
        return getattr(self, "beta")  # noqa: B009


class Global(Weighted):
    def weight(self):
        return WEIGHT

    def move(self):
        globals()["WEIGHT"] = 1.0


class Nested(Weighted):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Dropout(0.0), Attribute())

    def weight(self):
        return self.inner[1].beta

    def move(self):
        self.inner[1].move()


class Listed(Weighted):
    def __init__(self):
        super().__init__()
        self.settings = {"beta": [0.1]}

    def weight(self):
        return self.settings["beta"][0]

    def move(self):
        self.settings["beta"][0] = 1.0


class Settings:
    __slots__ = ("beta",)


class Held(Weighted):
    def __init__(self):
        super().__init__()
        self.settings = Settings()
        self.settings.beta = 0.1

    def weight(self):
        return self.settings.beta

    def move(self):
        self.settings.beta = 1.0


class Plain(Held):
    """An object of the standard library that holds settings."""

    def __init__(self):
        super().__init__()
        self.settings = argparse.Namespace(beta=0.1)


class Array(Weighted):
    """A numpy array that is changed in place."""

    def __init__(self):
        super().__init__()
        self.weights = np.array([0.1, 7.0])

    def weight(self):
        return float(self.weights[0])

    def move(self):
        self.weights[0] = 1.0


class Chosen(Weighted):
    """A set of the options that are on."""

    def __init__(self):
        super().__init__()
        self.on = set()

    def weight(self):
        return 1.0 if "whole" in self.on else 0.1

    def move(self):
        self.on.add("whole")


class Imported(Weighted):
    """A number of a module that is imported while the code runs."""

    def __init__(self):
        super().__init__()
        sys.modules["settings_of_a_test"] = types.ModuleType("settings_of_a_test")
        sys.modules["settings_of_a_test"].weight = 0.1

    def weight(self):
        from settings_of_a_test import weight

        return weight

    def move(self):
        sys.modules["settings_of_a_test"].weight = 1.0


class Keyword(Weighted):
    """A keyword of a partial function, which may be replaced."""

    def __init__(self):
        super().__init__()
        self.of = partial(lambda beta: beta, beta=0.1)

    def weight(self):
        return self.of()

    def move(self):
        self.of.keywords["beta"] = 1.0


class Replaced(Weighted):
    """A tensor that is not a buffer, and is replaced by another."""

    def __init__(self):
        super().__init__()
        self.beta = torch.tensor(0.1)

    def weight(self):
        return self.beta

    def move(self):
        self.beta = torch.tensor(1.0)


class Buffer(Replaced):
    def __init__(self):
        super().__init__()
        del self.beta
        self.register_buffer("beta", torch.tensor(0.1))

    def move(self):
        self.register_buffer("beta", torch.tensor(1.0))


class Training(Weighted):
    """The training flag of a submodule."""

    def __init__(self):
        super().__init__()
        self.part = torch.nn.Dropout(0.5)

    def weight(self):
        return 1.0 if self.part.__dict__["training"] is False else 0.1

    def move(self):
        self.part.eval()


class Function(Weighted):
    def __init__(self):
        super().__init__()
        self.of = _tenth

    def weight(self):
        return self.of()

    def move(self):
        self.of = _one


class Frozen(Attribute):
    def move(self):
        self.s.requires_grad_(False)


class Hidden(Weighted):
    """State that no guard covers."""

    def __init__(self):
        super().__init__()
        self.held = deque([0.1])

    def weight(self):
        return self.held[0]

    def move(self):
        self.held[0] = 1.0


def _tenth():
    return 0.1


def _one():
    return 1.0


def closure():
    weight = 0.1
    lvm = Weighted()

    def move():
        nonlocal weight
        weight = 1.0

    lvm.weight, lvm.move = lambda: weight, move
    return lvm


def defaults():
    def of(beta=0.1):
        return beta

    lvm = Weighted()
    lvm.weight, lvm.move = lambda: of(), lambda: setattr(of, "__defaults__", (1.0,))
    return lvm


def data():
    return torch.randn(40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _as_graph(monkeypatch):
    monkeypatch.setattr("vilvm.training.compiled_step.machine_code", graph)


def trained(make, compile, at=MOVED_AT, **options):
    """Parameters and history of a run in which a callback changes the state at a record."""
    lvm, calls = make(), []

    def callback(event):
        calls.append(event.history.records[-1].step)
        if event.history.records[-1].step == at:
            lvm.move()

    globals()["WEIGHT"] = 0.1
    adam = partial(torch.optim.Adam, lr=3e-2)
    done = vilvm.fit(
        lvm,
        data(),
        steps=STEPS,
        optimizer=adam,
        compile=compile,
        callbacks=[callback],
        progress=False,
        **options,
    )
    assert (
        calls == done.history["step"].tolist()
    )  # once each, also if the run went back
    return lvm.m.item(), lvm.s.item(), done.history["elbo"].tolist(), calls


PAIRS = [
    Attribute,
    OfClass,
    ByName,
    Global,
    Nested,
    Listed,
    Held,
    Replaced,
    Buffer,
    Training,
    Function,
    Frozen,
    Hidden,
    closure,
]


@cache
def eager(make):
    """The eager run; it is the same for all pairs except the one that changes something else."""
    return trained(make, compile=False)


QUICK = {Attribute, Hidden, closure}


@pytest.mark.parametrize(
    "make",
    [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in PAIRS],
    ids=lambda m: m.__name__.lower(),
)
def test_state_changed_by_callback_acts_as_when_eager(make, capsys):
    m, s, elbo, at = eager(make if make is Frozen else Attribute)
    found_m, found_s, found_elbo, found_at = trained(make, compile=True)
    assert (found_m, found_s) == pytest.approx((m, s), rel=1e-4, abs=1e-5)
    assert found_elbo == pytest.approx(elbo, rel=1e-4)
    assert found_at == at
    lines = capsys.readouterr().out.splitlines()
    assert "eagerly" not in "".join(lines)
    if make not in (Frozen, Replaced, Buffer):  # no number of it is frozen
        assert len(lines) == 1
        assert re.search(r"compiled anew.* (changed|replaced|gradient|loss)", lines[0])


@pytest.mark.parametrize(
    "make",
    [Plain, Array, Chosen, Imported, Keyword, defaults],
    ids=lambda m: m.__name__.lower(),
)
def test_guards_cover_settings_in_every_place(make):
    lvm = make()
    roots = [lvm, lvm.model, lvm.guide, lvm.weight]
    before, guards = lvm.weight(), Guards.of(roots)
    assert guards.changed() is None
    lvm.move()
    assert guards.changed() is not None
    assert (before, lvm.weight()) == (0.1, 1.0)


def test_changed_weight_changes_the_numbers():
    """So the cases above can fail: without the change, the numbers are others."""
    (m, s, *_), (other_m, other_s, *_) = (
        eager(Attribute),
        trained(Attribute, compile=False, at=-1),
    )
    assert abs(m - other_m) + abs(s - other_s) > 0.05
    for make in (OfClass, Hidden, closure):
        assert trained(make, compile=False)[:2] == (m, s)


@pytest.mark.slow
def test_annealing_by_callback_over_6000_steps():
    """Beta rises from 0.1 to 1 at step 4,200 of 6,000, or at the next record."""

    def run(compile):
        lvm = Attribute()

        def callback(event):
            lvm.beta = 0.1 if event.history.records[-1].step < 4200 else 1.0

        vilvm.fit(
            lvm,
            data(),
            steps=6000,
            compile=compile,
            callbacks=[callback],
            progress=False,
        )
        return lvm.m.item(), lvm.s.item()

    assert run("auto") == pytest.approx(run(False), rel=1e-3, abs=1e-4)


class Counting(Attribute):
    """A model that anneals by its own count, too slowly for an effect within a few steps."""

    def weight(self):
        self.beta = min(1.0, self.beta + 1e-7)
        return self.beta


class Averaging(Weighted):
    """A model that keeps a moving average outside its buffers."""

    def __init__(self):
        super().__init__()
        self.mean = torch.tensor(0.1)

    def weight(self):
        self.mean = 0.999999 * self.mean + 1e-6
        return self.mean


class ByBatch(Weighted):
    """A model that stores the size of its batch, which is not a count."""

    def guide(self, x):
        self.size = len(x)
        super().guide(x)

    def weight(self):
        return 4.0 / self.size


class Drawing(Weighted):
    """A model that holds a numpy generator and draws from it."""

    def __init__(self):
        super().__init__()
        self.mean = np.random.default_rng(0)

    def weight(self):
        return 1.0 + 1e-6 * self.mean.random()


@pytest.mark.parametrize(
    "draw", [random.random, np.random.rand], ids=["python", "numpy"]
)
def test_rare_draws_outside_torch_are_detected_immediately(draw, capsys):
    """They would change the numbers only in rare steps."""
    lvm = Weighted()
    lvm.weight = lambda: 2.0 if draw() < 1e-9 else 1.0
    vilvm.fit(lvm, data(), steps=5, compile=True, progress=False)
    assert (
        "eagerly: a number drawn by Python's random or by numpy"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "make", [Counting, Averaging, Drawing], ids=["count", "average", "draws"]
)
def test_state_that_the_pair_changes_is_named(make, capsys):
    vilvm.fit(make(), data(), steps=20, compile=True, progress=False)
    assert re.search(
        r"eagerly: \w+\.(beta|mean) changes whenever the pair is run",
        capsys.readouterr().out,
    )


def test_rewritten_equal_state_is_no_change(capsys):
    ends = []
    for compile in (False, True):
        lvm = ByBatch()
        # the third batch has 8 data
        vilvm.fit(lvm, data(), steps=60, batch_size=16, compile=compile, progress=False)
        ends.append((lvm.m.item(), lvm.s.item()))
    assert ends[1] == pytest.approx(ends[0], rel=1e-4, abs=1e-5)
    assert "eagerly" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "rate",
    [lambda n: 1.0, pytest.param(lambda n: 0.99**n, marks=pytest.mark.slow)],
    ids=["constant", "falling"],
)
def test_state_changed_by_scheduler_counts_at_once(rate, capsys):
    ends = []
    for compile in (False, True):
        lvm = Attribute()

        def moving(step, lvm=lvm):
            lvm.beta = 1.0 if step >= 37 else 0.1
            return rate(step)

        scheduler = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=moving)
        adam = partial(torch.optim.Adam, lr=3e-2)
        vilvm.fit(
            lvm,
            data(),
            steps=80,
            optimizer=adam,
            scheduler=scheduler,
            compile=compile,
            progress=False,
        )
        ends.append((lvm.m.item(), lvm.s.item()))
    assert ends[1] == pytest.approx(ends[0], rel=1e-4, abs=1e-5)
    assert "changed from 0.1 to 1.0" in capsys.readouterr().out


@pytest.mark.slow
def test_run_returns_after_scheduler_changes_hidden_state(capsys):
    """Records since the change are removed with their steps; the hidden count is not reset, so the
    eager run to compare with has a later count.
    """
    lvm, seen = Hidden(), []

    def moving(step):
        seen.append(step)
        lvm.held[0] = 1.0 if step >= 41 else 0.1
        return 1.0

    scheduler = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=moving)
    adam = partial(torch.optim.Adam, lr=3e-2)
    done = vilvm.fit(
        lvm,
        data(),
        steps=130,
        optimizer=adam,
        scheduler=scheduler,
        compile=True,
        progress=False,
    )
    other = Attribute()

    def other_moving(step):
        other.beta = 1.0 if step >= 41 else 0.1
        return 1.0

    vilvm.fit(
        other,
        data(),
        steps=130,
        optimizer=adam,
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=other_moving),
        compile=False,
        progress=False,
    )
    assert "training went back to step" in capsys.readouterr().out
    assert len(set(seen)) < len(seen)
    assert done.steps == 130
    # The steps between were trained again, with the present state.
    assert (lvm.m.item(), lvm.s.item()) == pytest.approx(
        (other.m.item(), other.s.item()), abs=0.05
    )


def test_state_that_no_code_reads_is_no_change(capsys):
    lvm = Attribute()
    callback = lambda event: setattr(lvm, "seen", len(event.history))  # noqa: E731
    vilvm.fit(
        lvm, data(), steps=130, compile=True, callbacks=[callback], progress=False
    )
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_endlessly_changing_state_is_refused_by_name(capsys):
    ends = []
    for compile in (False, True):
        lvm = Attribute()

        def moving(step, lvm=lvm):
            lvm.beta = 0.1 + 0.001 * step
            return 1.0

        scheduler = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=moving)
        vilvm.fit(
            lvm, data(), steps=40, scheduler=scheduler, compile=compile, progress=False
        )
        ends.append((lvm.m.item(), lvm.s.item()))
    assert ends[1] == pytest.approx(ends[0], rel=1e-4, abs=1e-5)
    assert "keep it in a buffer of the module" in capsys.readouterr().out
