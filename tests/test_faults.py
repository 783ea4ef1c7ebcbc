"""A part of the campaign of faults, and a check that the campaign detects differences."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vilvm
from benchmarks.faults.__main__ import count
from benchmarks.faults.children import free_port
from benchmarks.faults.kills import digest, names
from benchmarks.faults.table import Row, markdown

ROOT = Path(__file__).parents[1]
# As few runs as hold every kind of state of a checkpoint, some of them compiled.
KILLED = (
    "milestones by epoch",
    "scheduler: on a plateau",
    "data on disk",
    "skipped steps",
    "arguments, a hook",
    "early stopping",
    "2 ranks, validation",
)
FAULTS = (
    "rank 0 killed",
    "rank 0 stopped",
    "rank 1 never",
    "the port",
    "disk is full",
    "altered",
)


def run(module, *words):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.faults.{module}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    run(
        "kills",
        "--kills",
        "20",
        "--only",
        "|".join(KILLED),
        "--json",
        str(tmp_path / "found.json"),
    )
    found = json.loads((tmp_path / "found.json").read_text())
    total = found["total"]
    assert total["kills"] >= 20
    assert total["identical"] == total["comparisons"] >= len(found["cases"]) == 11
    assert (total["leftovers"], total["running"]) == (0, 0)


@pytest.mark.slow
def test_one_failing_rank_ends_all_with_one_sentence(tmp_path):
    run("ranks", "--only", "|".join(FAULTS), "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["survived"] for row in found] == [
        1
    ] * 7  # "rank 0 killed" is two of them


def test_digest_includes_every_bit_and_no_time():
    state = {
        "m": torch.tensor([0.0, 1.0]),
        "rng": [torch.arange(3)],
        "best": None,
        "seconds": 1.0,
    }
    assert digest({**state, "seconds": 2.0}) == digest(state)
    for other in (
        {"m": torch.tensor([-0.0, 1.0])},
        {"rng": [torch.tensor([0, 1, 3])]},
        {"best": 0},
        {"m": torch.zeros(2, 1)},
    ):
        assert digest({**state, **other}) != digest(state)
    assert digest(torch.tensor(float("nan"))) == digest(torch.tensor(float("nan")))


def test_run_folders_differ_only_in_the_checkpoint_step(tmp_path):
    for name in (
        "checkpoint/step-000000007",
        "checkpoint/.step-000000003.removed",
        "history.csv",
    ):
        (tmp_path / name).mkdir(parents=True)
    assert names(tmp_path) == {
        "checkpoint",
        "checkpoint/step",
        "checkpoint/.step-000000003.removed",
        "history.csv",
    }


def test_failures_to_survive_are_counted_and_named():
    found = count(
        [("a", "refused"), ("b", "crash", "signal 11"), ("c", "refused")], {"refused"}
    )
    assert found == {
        "outcomes": {"refused": 2, "crash": 1},
        "trouble": ["b: crash: signal 11"],
    }
    assert (
        markdown([Row("a fault", 1200, 1199, "nothing")]).splitlines()[-1]
        == "| a fault | 1,200 | 1,199 | nothing |"
    )


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (
            "127.0.0.1",
            "The server socket has failed to listen on any local network address",
        ),
        (
            None,
            "Error initializing torch.distributed using env:// rendezvous: environment variable "
            "MASTER_ADDR expected, but not set",
        ),
    ],
)
def test_ranks_that_cannot_meet_say_so(monkeypatch, address, why):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {
            "WORLD_SIZE": 2,
            "RANK": 0,
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
        }.items():
            monkeypatch.delenv(
                name, raising=False
            ) if value is None else monkeypatch.setenv(name, str(value))
        with pytest.raises(vilvm.PeerLostError) as error, vilvm.distributed(0.1):
            pass
    assert str(error.value) == (
        f"Rank 0 of 2: the processes of this run did not meet at {address or '?'}:{port} ({why}). "
        "Start all of them at once with torchrun, on a free port."
    )
