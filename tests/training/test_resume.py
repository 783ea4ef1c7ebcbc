"""A resumed run equals an uninterrupted one bit for bit; test_faults tests killed runs."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from pyro.infer import Trace_ELBO

import vilvm
from vilvm._runtime.random import seeded
from vilvm.data.datasets import digits
from vilvm.models.conv_autoencoder import ConvAutoencoder
from vilvm.models.vae import VAE
from vilvm.objectives import Annealed
from vilvm.training import checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 120

WORKER = """
import sys
from functools import partial
import torch
import vilvm
from vilvm.data import Data, DynamicBinarisation
from vilvm.models.vae import VAE

def run(folder, steps):
    torch.manual_seed(1)
    data = Data(torch.rand(700, 64), transform=DynamicBinarisation())
    lvm = VAE(64, 4, encoder_hidden=(32,), decoder_hidden=(32,))
    vilvm.fit(
        lvm, data, validation=data, steps=steps, batch_size=64, run_dir=folder, resume=True,
        checkpoint_seconds=0.0,
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
    )
    return lvm.state_dict()
"""


def worker(folder):
    """The run in a process that a signal will stop."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            WORKER + "run(sys.argv[1], int(sys.argv[2]))",
            str(folder),
            str(STEPS),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder):
    """Finishes the run in this process; returns its final parameters."""
    names = {}
    exec(WORKER, names)
    return names["run"](folder, STEPS)


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[n], second[n]) for n in first
    )


@pytest.mark.slow
def test_interrupt_saves_and_says_how_to_resume(tmp_path):
    undisturbed = finish(tmp_path / "whole")
    folder = tmp_path / "stopped"
    process = worker(folder)
    while not list(folder.glob("checkpoint/step-*[1-9]*")):
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Interrupted after step" in output
    assert "Resume with the same call and resume=True" in output
    assert same(undisturbed, finish(folder))


def train(folder, steps, **options):
    with seeded(1):
        lvm = VAE(64, 4, encoder_hidden=(32,), decoder_hidden=(32,))
    data = digits()
    return lvm, vilvm.fit(
        lvm, data.train, steps=steps, batch_size=100, run_dir=folder, **options
    )


@pytest.mark.parametrize(
    "options",
    [
        {"validation": digits().validation},
        {
            "scheduler": partial(
                torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=60
            )
        },
    ],
    ids=["validation", "one cycle"],
)
def test_n_and_m_steps_equal_n_plus_m(tmp_path, options):
    whole, _ = train(tmp_path / "whole", 60, **options)
    train(tmp_path / "parts", 33, **options)
    parts, fitted = train(tmp_path / "parts", 60, resume=True, **options)
    assert fitted.steps == 60
    assert same(whole.state_dict(), parts.state_dict())


@pytest.mark.slow
def test_records_and_best_parameters_survive_an_interruption(tmp_path):
    options = {
        "validation": digits().validation,
        "optimizer": partial(torch.optim.Adam, lr=1e-2),
    }
    whole, done = train(tmp_path / "whole", 200, **options)
    train(tmp_path / "parts", 77, **options)
    parts, fitted = train(tmp_path / "parts", 200, resume=True, **options)
    for column in (
        "step",
        "elbo",
        "validation_elbo",
        "rate",
        "gradient_norm",
        "learning_rate",
    ):
        # The run of 77 steps has a record at its end, which the longer run has not.
        assert fitted.history[column].tolist() == done.history[column].tolist(), column
    assert fitted.best_step == done.best_step
    assert same(whole.state_dict(), parts.state_dict())


class Normalised(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.3)
        self.vae = VAE(64, 4, encoder_hidden=(32,), decoder_hidden=(32,))

    def model(self, x):
        self.vae.model(x)

    def guide(self, x):
        self.vae.guide(self.drop(self.norm(x)))


def test_batch_statistics_and_dropout_resume_too(tmp_path):
    def run(folder, steps, **options):
        with seeded(1):
            lvm = Normalised()
        data = digits()
        vilvm.fit(
            lvm,
            data.train,
            steps=steps,
            batch_size=100,
            run_dir=folder,
            validation=data.validation,
            **options,
        )
        return lvm.state_dict()

    whole = run(tmp_path / "whole", 60)
    run(tmp_path / "parts", 17)
    assert same(whole, run(tmp_path / "parts", 60, resume=True))
    assert whole["norm.num_batches_tracked"] > 0


def interrupting(at):
    return lambda event: (
        os.kill(os.getpid(), signal.SIGINT)
        if event.history.records[-1].step == at
        else None
    )


def test_stopping_callback_is_not_undone_by_interrupt(tmp_path):
    stop = [interrupting(56), lambda event: event.history.records[-1].step == 56]
    _, fitted = train(tmp_path, 300, callbacks=stop)
    assert (fitted.stopped, fitted.steps) == ("callback", 56)
    _, again = train(tmp_path, 300, callbacks=stop, resume=True)
    assert (again.stopped, again.steps) == ("callback", 56)


def test_interrupt_at_the_last_step_changes_nothing(tmp_path):
    _, fitted = train(
        tmp_path, 112, validation=digits().validation, callbacks=[interrupting(112)]
    )
    assert (fitted.stopped, fitted.steps) == ("finished", 112)


def test_interrupted_model_has_its_last_parameters(tmp_path, capsys):
    data = digits().validation
    lvm, fitted = train(
        tmp_path,
        600,
        validation=data.subset(slice(0, 5)),
        optimizer=partial(torch.optim.Adam, lr=0.05),
        callbacks=[interrupting(280)],
    )
    assert (fitted.stopped, fitted.steps, fitted.best_step) == ("interrupted", 280, 280)
    assert (
        "Interrupted after step 280 of 600. Resume with the same call and resume=True (run "
        f"folder {tmp_path})" in capsys.readouterr().out
    )
    state = checkpoint.load(checkpoint.latest(tmp_path / "checkpoint"))
    assert same(state["model"], lvm.state_dict())


def test_more_patience_continues_a_stopped_run(tmp_path):
    options = {
        "validation": digits().validation.subset(slice(0, 5)),
        "optimizer": partial(torch.optim.Adam, lr=0.05),
    }
    _, fitted = train(tmp_path, 3000, patience=1, **options)
    assert fitted.stopped == "early"
    _, again = train(tmp_path, 3000, patience=1, resume=True, **options)
    assert again.steps == fitted.steps
    _, longer = train(tmp_path, fitted.steps + 56, patience=50, resume=True, **options)
    assert longer.steps == fitted.steps + 56


def test_objective_continues_its_count(tmp_path):
    objective = Annealed(Trace_ELBO(), warmup=20)
    train(tmp_path, 20, objective=objective)
    train(tmp_path, 60, objective=objective, resume=True)
    assert objective.step == 60


def test_finished_run_resumes_unchanged(tmp_path):
    first, done = train(tmp_path, 60, validation=digits().validation)
    again, fitted = train(tmp_path, 60, validation=digits().validation, resume=True)
    assert same(first.state_dict(), again.state_dict())
    assert (
        fitted.history["validation_elbo"].tolist()
        == done.history["validation_elbo"].tolist()
    )


def test_only_the_last_good_checkpoints_are_kept(tmp_path):
    train(tmp_path, 20, checkpoint_seconds=0.0)
    names = sorted(p.name for p in (tmp_path / "checkpoint").iterdir())
    assert names == ["step-000000019", "step-000000020"]


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.Adam, fused=True),
        pytest.param(
            partial(torch.optim.SGD, lr=1e-3, momentum=0.9), marks=pytest.mark.slow
        ),
    ],
)
def test_memory_order_of_tensors_is_kept(tmp_path, optimizer):
    """A fused optimizer needs the same memory order of parameter and state after a resumption."""
    x = torch.rand(40, 64)

    def run(name, callbacks=()):
        torch.manual_seed(0)
        lvm = ConvAutoencoder(8, 3, channels=(4, 5)).to(
            memory_format=torch.channels_last
        )
        assert any(not p.is_contiguous() for p in lvm.parameters())
        options = {
            "steps": 120,
            "batch_size": 10,
            "optimizer": optimizer,
            "resume": True,
        }
        return lvm, vilvm.fit(
            lvm, x, run_dir=tmp_path / name, callbacks=callbacks, **options
        )

    whole, _ = run("whole")
    _, first = run("parts", [interrupting(52)])
    assert (first.stopped, first.steps) == ("interrupted", 52)
    parts, second = run("parts")
    assert second.steps == 120
    assert all(
        torch.equal(whole.state_dict()[n], v) for n, v in parts.state_dict().items()
    )
