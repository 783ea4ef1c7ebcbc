"""The time that a diagnostic may take."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from vilvm.diagnostics import _time_budget
from vilvm.diagnostics._session import Check, Session
from vilvm.inference import _ladder
from vilvm.inference._clock import Clock
from vilvm.inference._weighted import Weighted


@pytest.mark.parametrize(("seconds", "draws"), [(1.0, 25), (5.0, 200), (100.0, 1000)])
def test_affordable_draws_ignore_the_slow_first_run(monkeypatch, seconds, draws):
    """A run takes 0.1 s plus 0.02 s per draw; the first run takes 30 s more."""
    now, runs = [0.0], []

    def run(size):
        now[0] += (0.0 if runs else 30.0) + 0.1 + 0.02 * size
        runs.append(size)

    monkeypatch.setattr(_time_budget.time, "monotonic", lambda: now[0])
    found = _time_budget.affordable_draws(run, 25, 1000, seconds)
    assert found == pytest.approx(draws, rel=0.1)
    assert sum(runs) <= 130


class Now:
    """A clock that stands still between calls of ``passes``."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        monkeypatch.setattr(_time_budget.time, "monotonic", lambda: self.seconds)

    def passes(self, seconds):
        self.seconds += seconds


@pytest.mark.parametrize("greed", [0.5, 1.0, 3.0, torch.inf])
def test_session_keeps_its_budget_within_a_fifth(monkeypatch, greed):
    """Each check takes `greed` times the seconds that it may take; a run of the model takes 1."""
    now, budget = Now(monkeypatch), 60.0

    def run(rate, seconds):
        end = now.seconds + greed * seconds
        while now.seconds < end:
            now.passes(1.0)
            pyro.sample("x", dist.Normal(0.0, 1.0))
        raise ValueError("done")

    def table(seconds):
        now.passes(seconds)
        return "a table"

    session = Session(None, budget, budget)
    session.run([Check(f"check {i}", run) for i in range(8)], 0.01, False)
    made = session.tabulate(table)
    assert now.seconds <= 1.2 * budget
    if greed <= 1:
        assert set(session.skipped.values()) == {"done"}
        assert made == "a table"


@pytest.mark.parametrize("pace", [1e-5, 1e-3, 4e-3])
def test_more_weights_are_made_only_if_they_fit(monkeypatch, pace):
    """A draw takes `pace` seconds, whose number doubles up to 64,000."""
    now = Now(monkeypatch)

    def weigh(target, q, num):
        now.passes(pace * num)
        ratio = torch.cat([torch.full((5,), 9.0), torch.zeros(num - 5)])
        return Weighted(torch.zeros(num, 1), ratio, ratio.softmax(0), 0.1)

    monkeypatch.setattr(_ladder, "weigh", weigh)
    monkeypatch.setattr(_ladder, "Mixture", lambda *_: None)
    monkeypatch.setattr(Weighted, "joined", lambda self, other: other)

    class Target:
        gradients = 0

    clock = Clock(60.0)
    first = 4000 * pace
    _ladder._Choice(Target(), clock, ([], torch.zeros(0)))
    assert clock.elapsed <= first + 0.2 * (60 - first) + 1e-6
    if pace == 1e-5:
        assert clock.elapsed > first  # there was time for more
