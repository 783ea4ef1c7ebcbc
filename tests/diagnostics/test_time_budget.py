"""The time that a diagnostic may take."""

import pytest

from vilvm.diagnostics import _time_budget


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
