"""Two processes train as one would: same parameters, one writer, one decision.

test_faults tests the failure of a process.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch

import vilvm
from tests.training import ranks
from vilvm._runtime.distributed import ProcessGroup
from vilvm.training._batches import Batches

ROOT = Path(__file__).parents[2]


def start(folder, size=2):
    """Starts processes in the environment that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen(
            [sys.executable, str(Path(ranks.__file__)), str(folder)],
            env={
                **os.environ,
                **common,
                "RANK": str(r),
                "LOCAL_RANK": str(r),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
            },
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(size)
    ]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of two processes, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    processes = start(folder)
    printed = [p.communicate(timeout=120)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(printed)
    return (
        folder,
        json.loads((folder / "results.json").read_text()),
        torch.load(folder / "parameters.pt", weights_only=True),
        printed,
    )


@pytest.mark.slow
def test_two_ranks_step_as_one_process(two, tmp_path):
    folder, _, parameters, _ = two
    for name, expected in ranks.noiseless(tmp_path).items():
        for key, value in expected.items():
            torch.testing.assert_close(
                parameters["found"][name][key],
                value,
                rtol=1e-6,
                atol=1e-6,
                msg=lambda m, n=name: f"{n}: {m}",
            )
    found, expected = (
        pandas.read_csv(f / "adam" / "history.csv") for f in (folder, tmp_path)
    )
    for column in ("elbo", "rate", "gradient_norm", "step"):
        assert found[column].tolist() == pytest.approx(
            expected[column].tolist(), rel=1e-5
        )


@pytest.mark.slow
def test_ranks_share_parameters_and_draw_own_noise(two):
    _, results, _, _ = two
    assert results["alike"]
    assert results["draws"][0] != results["draws"][1]


@pytest.mark.slow
def test_run_resumes_exactly_and_continues_on_fewer_ranks(two):
    folder, results, _, _ = two
    assert results["resumed"]
    assert results["same records"]
    lvm = ranks.Noisy()
    fitted = vilvm.fit(
        lvm,
        ranks.data(),
        steps=30,
        batch_size=20,
        validation=ranks.data(),
        run_dir=folder / "parts",
        resume=True,
    )
    assert fitted.steps == 30
    assert fitted.history["step"].tolist() == sorted(
        set(fitted.history["step"].tolist())
    )


@pytest.mark.slow
def test_evaluation_on_two_ranks_equals_one_process(two):
    _, results, parameters, _ = two
    lvm = ranks.Noisy()
    lvm.load_state_dict(parameters["noisy"])
    elbo = vilvm.evaluate(lvm, ranks.data(), num_samples=200, seed=1).bounds["elbo"]
    mean, mc_se, count = results["elbo"]
    assert count == 53
    assert abs(elbo.mean - mean) < 5 * (elbo.mc_se**2 + mc_se**2) ** 0.5
    # in order
    assert (
        torch.corrcoef(
            torch.stack(
                [elbo.values, torch.tensor(results["values"], dtype=torch.float64)]
            )
        )[0, 1]
        > 0.99
    )


@pytest.mark.slow
def test_decision_of_one_rank_holds_for_all(two):
    _, results, _, printed = two
    assert results["stopped"] == ["callback", 100]
    assert "was given other data" in results["refused"]
    assert "run_dir included" in results["alone"]
    assert results["skipped"] == [24, "finished"]
    assert results["patience"] == ["early", [9, 21], [9, 21]]  # an epoch has 3 steps
    assert "the share of each of 2 ranks" in results["whole"]
    assert printed[1] == ""


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_make_up_the_whole(size):
    for count in (1, 5, 20):
        found = [
            i
            for r in range(size)
            for i in range(count)[ProcessGroup(r, size).shard(count)]
        ]
        assert found == list(range(count))
    batches = [
        Batches(vilvm.Data(torch.arange(23.0)[:, None]), 10, 0, ProcessGroup(r, size))
        for r in range(size)
    ]
    for step in range(3):
        assert sum(b.weight(step) for b in batches) == pytest.approx(1)
        mine = [b(step) for b in batches if b.weight(step)]
        assert torch.equal(
            torch.cat(mine),
            Batches(vilvm.Data(torch.arange(23.0)[:, None]), 10, 0)(step),
        )


@pytest.mark.slow
def test_three_ranks_step_as_one_process(tmp_path):
    processes = start(tmp_path, size=3)
    printed = [p.communicate(timeout=240)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], "\n".join(printed)
    found = torch.load(tmp_path / "parameters.pt", weights_only=True)["found"]
    for name, expected in ranks.noiseless(tmp_path / "one").items():
        for key, value in expected.items():
            torch.testing.assert_close(
                found[name][key],
                value,
                rtol=1e-6,
                atol=1e-6,
                msg=lambda m, n=name: f"{n}: {m}",
            )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["alike"]
    assert results["resumed"]
    assert "the share of each of 3 ranks" in results["whole"]


@pytest.mark.slow
def test_main_example_runs_under_torchrun(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "examples.vae_mnist",
    ]
    options = [
        "--data",
        "digits",
        "--epochs",
        "3",
        "--samples",
        "20",
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Training on digits") == 1
    assert (
        json.loads((tmp_path / "run" / "results.json").read_text())["bounds"]["elbo"][
            "mean"
        ]
        > -100
    )
    assert (tmp_path / "run" / "page.html").exists()
