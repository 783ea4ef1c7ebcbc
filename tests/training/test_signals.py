"""Ctrl-C and SIGTERM: the first saves and returns, the second exits; no file is half written, no
process hangs.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vilvm
from vilvm._runtime.files import locked
from vilvm._runtime.random import seeded
from vilvm.models.ppca import PPCA
from vilvm.training import _signals, checkpoint
from vilvm.training._signals import Interruption, interruptible


def fit(callbacks=(), steps=120, **options):
    with seeded(0):
        lvm, x = PPCA(3, 1), torch.randn(20, 3)
    return lvm, vilvm.fit(
        lvm,
        x,
        steps=steps,
        callbacks=callbacks,
        compile=False,
        progress=False,
        **options,
    )


def at(step, do):
    return lambda event: do() if event.history.records[-1].step == step else None


def send(number=signal.SIGINT, times=1):
    for _ in range(times):
        signal.raise_signal(number)


@pytest.fixture(autouse=True)
def _handlers_are_put_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_signal_within_the_handler_is_not_lost(monkeypatch):
    counted = Interruption._handle

    def handle(self, number, frame):
        """The second signal comes before the first has been counted."""
        if not self.asked:
            self.asked = True
            signal.raise_signal(number)
        counted(self, number, frame)

    monkeypatch.setattr(Interruption, "_handle", handle)
    with pytest.raises(KeyboardInterrupt), interruptible():
        send()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_saves_and_returns(number, tmp_path):
    _, fitted = fit([at(50, lambda: send(number))], run_dir=tmp_path)
    assert (fitted.stopped, fitted.steps) == ("interrupted", 50)
    whole, _ = fit()
    resumed, again = fit(run_dir=tmp_path, resume=True)
    assert again.stopped == "finished"
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


def test_second_signal_leaves_after_last_good_checkpoint(tmp_path):
    generators = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        fit([at(100, lambda: send(times=2))], run_dir=tmp_path, checkpoint_seconds=0.0)
    assert checkpoint.load(checkpoint.latest(tmp_path / "checkpoint"))["step"] == 99
    assert torch.equal(torch.get_rng_state(), generators)
    with locked(tmp_path):  # no other process holds the lock
        pass
    whole, _ = fit()
    resumed, _ = fit(run_dir=tmp_path, resume=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


def test_unfinished_checkpoint_is_written_first(tmp_path, monkeypatch):
    real, writes = checkpoint.save, []

    def save(folder, step, state):
        writes.append(step)
        if step == 3:
            send(times=2)
        return real(folder, step, state)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        fit(run_dir=tmp_path, checkpoint_seconds=0.0)
    assert (
        writes[-1]
        == checkpoint.load(checkpoint.latest(tmp_path / "checkpoint"))["step"]
        == 3
    )
    assert not [
        p for p in tmp_path.rglob(".*") if p.name.startswith((".step", ".history"))
    ]


def test_second_signal_acts_if_signals_are_ignored():
    """A shell makes background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            send(times=2)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_third_signal_ends_immediately():
    with interruptible() as asked, asked.writing():
        send(times=2)
        with pytest.raises(KeyboardInterrupt):
            send()


def test_signal_in_a_nested_fit_ends_both():
    inner = []

    def nested():
        inner.append(fit([at(50, send)])[1])
        inner.append(fit()[1])  # and one that starts after the signal

    _, outer = fit([at(100, nested)])
    assert (outer.stopped, outer.steps) == ("interrupted", 100)
    assert [(f.stopped, f.steps) for f in inner] == [
        ("interrupted", 50),
        ("interrupted", 1),
    ]


def test_handler_in_c_is_kept(monkeypatch):
    real, taken = signal.getsignal, []
    with monkeypatch.context() as patched:
        patched.setattr(
            _signals.signal,
            "getsignal",
            lambda s: None if s == signal.SIGTERM else real(s),
        )
        patched.setattr(_signals.signal, "signal", lambda s, handler: taken.append(s))
        with interruptible():
            pass
    assert set(taken) == {signal.SIGINT}


def test_handler_set_by_a_callback_is_kept():
    def mine(number, frame):
        pass

    before = signal.getsignal(signal.SIGTERM)
    try:
        fit([at(50, lambda: signal.signal(signal.SIGTERM, mine))], steps=60)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


CHILD = """
import sys, time, torch, vilvm
from vilvm.training._signals import _ACTIVE
from vilvm.models.ppca import PPCA
def wait(event):
    if event.history.records[-1].step == 50:
        print("ready", flush=True)
        while not _ACTIVE[0].asked:
            time.sleep(0.01)
        print("again", flush=True)
        while True:
            time.sleep(0.01)
options = {"callbacks": [wait], "compile": False, "run_dir": sys.argv[1]}
vilvm.fit(PPCA(3, 1), torch.randn(20, 3), steps=120, **options)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)],
)
def test_two_signals_end_a_waiting_process(number, code, tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as child:
        for line in ("ready", "again"):
            assert line in child.stdout.readline()
            child.send_signal(number)
        assert child.wait(30) == code
    assert checkpoint.load(checkpoint.latest(tmp_path / "checkpoint"))["step"] == 0
    with locked(tmp_path):
        pass
