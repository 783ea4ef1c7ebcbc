"""Training stops a given number of epochs after the best validation ELBO, whatever the length."""

import os
import signal

import numpy as np
import pytest
import torch

import vilvm
from tests.training.ranks import Scripted, still

X = torch.zeros(12, 1)


def train(peak, steps=4000, interrupt_at=None, **options):
    def advance(lvm, step):
        Scripted.advance(lvm, step)
        if step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    return vilvm.fit(
        Scripted(peak),
        X,
        steps=steps,
        validation=X,
        optimizer=still,
        after_step=advance,
        **options,
    )


@pytest.mark.parametrize("patience", [1, 7])
@pytest.mark.parametrize("batch_size", [12, 4])
def test_run_stops_patience_epochs_after_its_best(batch_size, patience):
    epoch = 12 // batch_size
    fitted = train(
        9 * epoch, batch_size=batch_size, validate_every=1, patience=patience
    )
    assert (fitted.stopped, fitted.best_step) == ("early", 9 * epoch)
    assert fitted.steps == (9 + patience) * epoch == fitted.history[-1].step
    assert fitted.history["epoch"].tolist() == list(range(1, 10 + patience))


@pytest.mark.slow
def test_long_runs_do_not_thin_out():
    fitted = train(1500, patience=20, validate_every=10)
    assert (fitted.stopped, fitted.best_step, fitted.steps) == ("early", 1500, 1520)


def test_records_are_at_a_steady_interval():
    steps = train(0, 130, batch_size=1).history["step"]
    assert steps.tolist() == [60, 120, 130]  # 5 epochs of 12 steps
    halves = train(0, 24, batch_size=1, validate_every=0.5).history
    assert halves["step"].tolist() == [6, 12, 18, 24]
    assert halves["epoch"].tolist() == [0, 1, 1, 2]


def test_patience_is_exact_between_records():
    """It ends where no record is due, and there a record is added."""
    fitted = train(92, patience=13)
    assert (fitted.stopped, fitted.best_step, fitted.steps) == ("early", 89, 102)
    # 13 steps after the best so far, and every 50 steps
    expected = [13, 26, 39, 50, 63, 76, 89, 100, 102]
    assert fitted.history["step"].tolist() == expected


def test_patience_without_a_finite_bound_counts_from_the_start():
    fitted = vilvm.fit(
        Scripted(0),
        X,
        steps=90,
        validation=X,
        patience=7,
        nonfinite="skip",
        after_step=lambda lvm, step: lvm.step.fill_(torch.nan),
    )
    assert np.isnan(fitted.history["validation_elbo"]).all()
    assert (fitted.stopped, fitted.steps) == ("early", 7)


COLUMNS = ("epoch", "step", "elbo", "validation_elbo", "gradient_norm")


@pytest.mark.parametrize("at", [30, 47])
def test_resumed_run_counts_on_exactly(tmp_path, at):
    options = {"batch_size": 4, "patience": 13}
    whole = train(31, **options)
    part = train(31, interrupt_at=at, run_dir=tmp_path, **options)
    assert (part.stopped, part.steps) == ("interrupted", at)
    again = train(31, run_dir=tmp_path, resume=True, **options)
    assert (again.stopped, again.steps) == (whole.stopped, whole.steps)
    assert again.best_step == whole.best_step
    for column in COLUMNS:
        np.testing.assert_array_equal(again.history[column], whole.history[column])


def test_other_patience_takes_effect_after_resuming(tmp_path):
    first = train(20, patience=5, run_dir=tmp_path)
    assert first.stopped == "early"
    longer = train(
        20, patience=40, run_dir=tmp_path, resume=True, interrupt_at=first.steps + 20
    )
    assert longer.stopped == "interrupted"
    shorter = train(20, patience=2, run_dir=tmp_path, resume=True)
    assert shorter.stopped == "early"
    assert shorter.steps == 50  # the next record


def test_another_interval_is_refused_on_resuming(tmp_path):
    train(20, 30, run_dir=tmp_path)
    with pytest.raises(vilvm.CheckpointError, match="validate_every = 50 steps, this"):
        train(20, 60, run_dir=tmp_path, resume=True, validate_every=10)


@pytest.mark.parametrize("bad", [0, -1, "1", True, float("nan")])
def test_interval_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="validate_every must be a positive number"):
        train(1, validate_every=bad)
