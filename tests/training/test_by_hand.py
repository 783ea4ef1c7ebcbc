"""Compiled steps equal eager steps if the user changes the optimizer, its parameters or tensors of
the model between them.
"""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from vilvm._compile import graph
from vilvm._runtime.random import seeded
from vilvm.lvm import module_parameters
from vilvm.training.compiled_step import CompiledStep
from vilvm.training.step import EagerStep

X = torch.randn(20, generator=torch.Generator().manual_seed(0))


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.m, self.s = (
            torch.nn.Parameter(torch.tensor(0.1)),
            torch.nn.Parameter(torch.tensor(0.0)),
        )
        self.prior = torch.tensor(0.0)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.prior, 1.0))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m * x, self.s.exp()))


def options(**values):
    return lambda lvm, optimizer, at: (
        optimizer.param_groups[0].update(values) if at == 3 else None
    )


def cleared(lvm, optimizer, at):
    if at == 3:
        optimizer.state.clear()


def counted_anew(lvm, optimizer, at):
    if at == 3:
        for state in optimizer.state.values():
            state["step"].zero_()


def put_back(lvm, optimizer, at):
    if at == 3:
        lvm.snapshot = copy.deepcopy(optimizer.state_dict())
    if at == 6:
        optimizer.load_state_dict(lvm.snapshot)


def frozen_for_a_while(lvm, optimizer, at):
    lvm.s.requires_grad_(not 3 <= at < 6)


def replaced_each_time(lvm, optimizer, at):
    lvm.prior = torch.tensor(0.1 * at)


def run(make, change, **own):
    lvm, optimizer = Line(), None
    optimizer = torch.optim.Adam(lvm.parameters(), lr=0.1)
    step = make(lvm, Trace_ELBO(), optimizer, **own)
    with seeded(1), module_parameters(lvm), pyro.validation_enabled(False):
        for at in range(9):
            if make is CompiledStep:
                step.settle()  # as ``fit`` does before callbacks
            change(lvm, optimizer, at)
            step(X, len(X))
    return lvm.m.item(), lvm.s.item()


CHANGES = {
    "betas": options(betas=(0.5, 0.6)),
    "weight_decay": options(weight_decay=1.0),
    "maximize": options(maximize=True),
    "cleared": cleared,
    "counted_anew": counted_anew,
    "put_back": put_back,
    "frozen_for_a_while": frozen_for_a_while,
    "replaced_each_time": replaced_each_time,
}


SLOW = {"put_back", "replaced_each_time", "weight_decay", "frozen_for_a_while", "betas"}


@pytest.mark.parametrize(
    "change",
    [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CHANGES],
)
def test_manual_changes_count_as_in_eager_steps(change):
    expected = run(EagerStep, CHANGES[change])
    lines = []
    assert run(
        CompiledStep, CHANGES[change], compiler=graph, log=lines.append
    ) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    unmoved = run(EagerStep, lambda *_: None)
    # so that the above can fail
    assert abs(unmoved[0] - expected[0]) + abs(unmoved[1] - expected[1]) > 1e-3
    assert all("eagerly" in line for line in lines)
    assert bool(lines) == (change in ("maximize", "frozen_for_a_while"))
