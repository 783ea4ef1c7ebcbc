"""The checks of a checkpoint before a run is resumed, and the run folder after disk errors and
kills.
"""

import errno
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

import vilvm
from benchmarks.faults.forgeries import Parts, forgeries
from examples._options import run
from vilvm.models.vae import tiny
from vilvm.report import Page
from vilvm.training import checkpoint


def fit(folder, steps=5, lvm=None, **options):
    torch.manual_seed(0)
    made, x = tiny()
    return vilvm.fit(lvm or made, x, steps=steps, run_dir=folder, **options)


def at(folder):
    found = checkpoint.latest(folder / "checkpoint")
    assert found is not None
    return found


# The settings that resume compares
# ----------------------------------------------------------------------------------------


def grouped(lr):
    return lambda ps: torch.optim.Adam(
        [{"params": ps[:2]}, {"params": ps[2:], "lr": lr}], lr=0.01
    )


def decaying(base):
    return partial(LambdaLR, lr_lambda=lambda step: base**step)


def halves(step):
    return 0.5**step


def thirds(step):
    return 0.3**step


FACTOR = 0.5


def by_global(step):
    return FACTOR**step


def sequence(gamma):
    return lambda o: SequentialLR(
        o, [ExponentialLR(o, gamma), ExponentialLR(o, 0.5)], milestones=[2]
    )


def weighted(by):
    return lambda step: {"beta": min(1.0, (step + 1) / by)}


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (
            {"optimizer": grouped(0.1)},
            {"optimizer": grouped(0.2)},
            r"by group: parameters=2; lr=0.1, parameters=\d+, this run has .*lr=0.2",
        ),
        (
            {"scheduler": decaying(0.9)},
            {"scheduler": decaying(0.8)},
            "another function, by its code or its constants: scheduler's function 0",
        ),
        (
            {"scheduler": partial(LambdaLR, lr_lambda=halves)},
            {"scheduler": partial(LambdaLR, lr_lambda=thirds)},
            "scheduler's function 0",
        ),
        (
            {"scheduler": sequence(0.9)},
            {"scheduler": sequence(0.8)},
            r"ExponentialLR\(gamma=0.9.*this run has .*gamma=0.8",
        ),
        (
            {"scheduler": partial(MultiStepLR, milestones=[2, 3])},
            {"scheduler": partial(MultiStepLR, milestones=[2, 4])},
            r"milestones=\(\(2, 1\), \(3, 1\)\).*this run has .*\(4, 1\)",
        ),
    ],
    ids=["group", "closure", "code", "sequence", "milestones"],
)
def test_resume_compares_options_other_than_defaults(tmp_path, before, now, message):
    fit(tmp_path, **before)
    with pytest.raises(vilvm.CheckpointError, match=message):
        fit(tmp_path, steps=6, resume=True, **now)
    assert fit(tmp_path, steps=6, resume=True, **before).steps == 6


def test_resume_compares_globals_that_functions_name(tmp_path, monkeypatch):
    options = {"scheduler": partial(LambdaLR, lr_lambda=by_global)}
    fit(tmp_path, **options)
    monkeypatch.setitem(globals(), "FACTOR", 0.3)
    with pytest.raises(vilvm.CheckpointError, match="another function"):
        fit(tmp_path, steps=6, resume=True, **options)


def line(family):
    def model(x, beta=1.0):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(beta * z, 1.0), obs=x)

    def guide(x, beta=1.0):
        m, s = pyro.param("m", torch.tensor(0.0)), pyro.param("s", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", family(m * x, s))

    return vilvm.Pair(model, guide)


def test_resume_detects_another_guide_of_equal_parameters(tmp_path):
    x, options = torch.ones(7), {"run_dir": tmp_path, "arguments": weighted(9)}
    vilvm.fit(line(dist.Normal), x, steps=3, **options)
    with pytest.raises(
        vilvm.CheckpointError,
        match=r"sites differ, first 'guide z' \(Normal \(\) in data, now Laplace \(\) in data\)",
    ):
        vilvm.fit(line(dist.Laplace), x, steps=4, resume=True, **options)
    with pytest.raises(
        vilvm.CheckpointError,
        match="another function, by its code or its constants: arguments",
    ):
        vilvm.fit(
            line(dist.Normal),
            x,
            steps=4,
            resume=True,
            **options | {"arguments": weighted(8)},
        )
    assert (
        vilvm.fit(
            line(dist.Normal),
            x,
            steps=4,
            resume=True,
            **options | {"arguments": weighted(9)},
        ).steps
        == 4
    )


# Forgeries
# ----------------------------------------------------------------------------------------


def state(change):
    """Changes the state of a checkpoint, with all checksums recomputed."""

    def forge(last):
        parts = Parts(last)
        change(parts.body)
        parts.write()

    return forge


def replaced(name, value):
    def forge(last):
        parts = Parts(last)
        parts.tensors[name] = value(parts.tensors[name])
        parts.write()

    return forge


def piped(last):
    (last / "state.json").unlink()
    os.mkfifo(last / "state.json")


def looping(last):
    shutil.rmtree(last)
    last.symlink_to(last)


SQUARE, COUNT = "/optimizer/state/0/exp_avg_sq", "/optimizer/state/0/step"
FORGED = {
    "a step that is not its own": (
        state(lambda s: s.update(step=0)),
        "its step|it is of step 0|its epoch",
    ),
    "a key missing": (state(lambda s: s.pop("tally")), "its state has other entries"),
    "a history of another type": (
        state(lambda s: s.update(history="x")),
        "its history is not a list",
    ),
    "a negative count": (
        replaced(COUNT, torch.neg),
        "optimizer/state/0/step is negative",
    ),
    "a count beyond its steps": (
        replaced(COUNT, lambda t: t + 4),
        "the steps that its optimizer counts",
    ),
    "a count without bound": (
        replaced(COUNT, lambda t: t * 1e38 * 1e38),
        "optimizer/state/0/step is not finite",
    ),
    "moments of another shape": (
        replaced(SQUARE, lambda t: t.flatten()[:3]),
        r"exp_avg_sq has shape \(3,\), and this run's has",
    ),
    "moments of another type": (
        replaced(SQUARE, torch.Tensor.double),
        "exp_avg_sq has type torch.float64",
    ),
    "negative squares": (replaced(SQUARE, lambda t: -t - 1), "exp_avg_sq is negative"),
    "a parameter that is NaN": (
        replaced("/model/encoder.0.weight", lambda t: t * torch.nan),
        "model/encoder.0.weight is not finite",
    ),
    "no generator": (
        replaced("/rng/0/0", lambda t: t * 0 + 255),
        "this run cannot have reached its state",
    ),
    "5,000 digits": (
        lambda last: (last / "state.json").write_text("[" + "9" * 5000 + "]"),
        "state.json is truncated or altered",
    ),
    "a deep nest": (
        lambda last: (last / "state.json").write_text("[" * 200_000),
        "state.json is truncated or altered",
    ),
    "a pipe": (piped, "it cannot be read"),
    "a link to itself": (looping, "it cannot be read"),
    "the identity of no run": (
        lambda last: (last.parents[1] / "run.json").write_text("{}"),
        "run.json is altered",
    ),
}


def test_forgeries_are_refused_in_one_sentence(tmp_path):
    fit(tmp_path / "run")
    for name, (forge, message) in FORGED.items():
        shutil.copytree(tmp_path / "run", tmp_path / name)
        forge(at(tmp_path / name))
        with pytest.raises(vilvm.CheckpointError, match=message) as caught:
            fit(tmp_path / name, steps=6, resume=True)
        assert "\n" not in str(caught.value), name


def test_checkpoint_of_another_equal_run_is_refused(tmp_path):
    for name in "ab":
        fit(tmp_path / name, lvm=tiny()[0])
    shutil.copy(at(tmp_path / "a") / "tensors.safetensors", at(tmp_path / "b"))
    with pytest.raises(
        vilvm.CheckpointError, match=r"tensors.safetensors is truncated or altered"
    ):
        fit(tmp_path / "b", steps=6, resume=True)
    shutil.copytree(at(tmp_path / "a"), at(tmp_path / "b"), dirs_exist_ok=True)
    with pytest.raises(
        vilvm.CheckpointError, match=f"it is of another run than {tmp_path / 'b'}"
    ):
        fit(tmp_path / "b", steps=6, resume=True)


def test_checkpoint_in_another_memory_order_is_refused(tmp_path):
    """A fused optimizer reads a parameter and its moments in the order of memory."""

    def made(turned):
        lvm = tiny()[0]
        weight = lvm.decoder[0].weight
        lvm.decoder[0].weight = torch.nn.Parameter(
            weight.detach().t().contiguous().t() if turned else weight.detach()
        )
        return lvm

    fit(tmp_path, lvm=made(True))
    with pytest.raises(
        vilvm.CheckpointError,
        match=r"decoder.0.weight has order in memory \[1, 0\], and this run's has \[\]",
    ):
        fit(tmp_path, steps=6, lvm=made(False), resume=True)
    assert fit(tmp_path, steps=6, lvm=made(True), resume=True).steps == 6


@pytest.mark.parametrize(
    "options",
    [
        {
            "scheduler": partial(CosineAnnealingLR, T_max=4),
            "optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        },
        {
            "scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=20),
            "optimizer": torch.optim.NAdam,
        },
        {"scheduler": sequence(0.7), "optimizer": torch.optim.Adagrad},
        {"optimizer": torch.optim.Adafactor, "callbacks": [lambda event: False]},
        {"optimizer": torch.optim.RMSprop, "nonfinite": "skip"},
    ],
    ids=["cosine", "one cycle", "sequence", "factored", "skipping"],
)
def test_every_state_of_a_run_is_accepted(tmp_path, options):
    """The checks refuse no state that a run was in, at any step."""
    for steps in (1, 3, 6, 11):
        assert fit(tmp_path, steps=steps, resume=True, **options).steps == steps


@pytest.mark.slow
def test_no_forgery_is_accepted():
    found = list(forgeries(seed=0, number=300))
    assert len(found) == 300
    assert [f for f in found if f.outcome not in ("refused", "identical")] == []
    assert sum(f.outcome == "refused" for f in found) > 250


# The run folder
# ----------------------------------------------------------------------------------------


def full(monkeypatch, name, number=errno.ENOSPC):
    """Makes the disk refuse files of this name."""
    fsync = os.fsync

    def failing(handle):
        if name in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        (
            "state.json",
            errno.ENOSPC,
            r"checkpoint of step 0 could not be written .*No space left.*there is none before it. "
            r"Make room there",
        ),
        (
            "state.json",
            errno.EROFS,
            r"Read-only file system.*Make its folder writable, and resume",
        ),
        (
            "history.csv",
            errno.ENOSPC,
            r"history.csv could not be written \(No space left.*up to step 0. Make room there, "
            r"and resume",
        ),
    ],
)
def test_full_disk_is_named(tmp_path, monkeypatch, name, number, message):
    full(monkeypatch, name, number)
    with pytest.raises(vilvm.CheckpointError, match=message):
        fit(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.undo()
    assert fit(tmp_path, resume=True).steps == 5


def test_full_disk_at_the_final_record_is_named(tmp_path, monkeypatch):
    fit(tmp_path, steps=4)
    text = (tmp_path / "history.csv").read_text()
    full(monkeypatch, "history.csv")
    with pytest.raises(
        vilvm.CheckpointError, match=r"history.csv could not be written .*up to step 5"
    ):
        fit(tmp_path, resume=True)
    assert (tmp_path / "history.csv").read_text() == text
    monkeypatch.undo()
    fit(tmp_path, resume=True)
    assert (tmp_path / "history.csv").read_text().splitlines()[-1].startswith("5,5,")


def test_finished_run_writes_nothing(tmp_path, monkeypatch):
    fitted = fit(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    full(monkeypatch, str(tmp_path), errno.EROFS)
    assert (
        fit(tmp_path, resume=True).history["elbo"].tolist()
        == fitted.history["elbo"].tolist()
    )
    assert {
        file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()
    } == before


def test_script_on_full_disk_ends_with_one_sentence(tmp_path, monkeypatch, capsys):
    full(monkeypatch, "page.html")
    with pytest.raises(
        SystemExit,
        match=r"page.html could not be written \(No space left.*\): make room there, "
        r"and run it again",
    ):
        run(lambda: Page("title").write(tmp_path / "page.html"))
    assert list(tmp_path.iterdir()) == []


def test_moved_run_folder_is_not_created_again(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def move(lvm, step):
        if step == 3:
            folder.rename(moved)

    with pytest.raises(
        vilvm.CheckpointError,
        match=r"the run folder .*/run was moved or replaced meanwhile",
    ):
        fit(folder, after_step=move, checkpoint_seconds=0.0)
    assert not folder.exists()
    assert at(moved).name == "step-000000002"


def test_leftovers_of_a_killed_process_are_swept(tmp_path):
    fit(tmp_path)
    left = [
        tmp_path / ".history.csv.0123abcd.tmp",
        at(tmp_path) / ".state.json.89abcdef.tmp",
    ]
    for file in left:
        file.write_text("half")
    (tmp_path / "checkpoint" / ".step-000000006.partial").mkdir()
    others = tmp_path / ".notes.tmp"
    others.write_text("")
    fit(tmp_path, resume=True)
    assert not any(file.exists() for file in left)
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == [
        "step-000000000",
        "step-000000005",
    ]
    assert others.exists()


def test_older_version_is_named(tmp_path):
    fit(tmp_path)
    file = at(tmp_path) / "state.json"
    file.write_text(json.dumps({"format": "vilvm checkpoint", "version": 3}))
    with pytest.raises(
        vilvm.CheckpointError,
        match="has version 3, this vilvm reads version 4: use the vilvm that wrote it",
    ):
        fit(tmp_path, resume=True)
