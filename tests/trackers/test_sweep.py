"""The sweep of the page "Trackers and sweeps" prunes trials and ends with a table."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "trackers.md"


@pytest.mark.slow
def test_sweep_prunes_and_ranks(capsys):
    import optuna

    (block,) = (
        b
        for b in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        if "optuna" in b
    )
    names = {"__name__": "__main__"}
    exec(compile(block, "trackers.md", "exec"), names)
    trials = names["study"].trials
    pruned = [t for t in trials if t.state == optuna.trial.TrialState.PRUNED]
    done = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert len(trials) == 8
    assert pruned
    assert all(max(t.intermediate_values) < 12 * 15 for t in pruned)  # steps
    assert len(names["models"]) == len(done)
    best = names["study"].best_trial
    assert best.value == max(best.intermediate_values.values())
    # the bound of the table and the one that pruned agree on the best
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if "──" in line)
    assert lines[head + 1].split()[0] == f"{best.params['latent']},"
