"""Numbers of samples per pass when memory is short."""

import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm._runtime import memory
from vilvm._runtime.memory import (
    _left_in_groups,
    bytes_made,
    free_bytes,
    trim_heap,
    widen_heap,
)
from vilvm.data.datasets import on_disk
from vilvm.evaluation import Schedule, ais, sample_passes
from vilvm.models.vae import VAE
from vilvm.weights import replicate


def test_bytes_made_counts_tensors_not_views():
    x = torch.zeros(1000)
    assert bytes_made(lambda: (x + 1).view(10, 100).t()) == 4000
    assert bytes_made(lambda: x[:5]) == 0
    assert 0 < free_bytes(torch.device("cpu")) < 2**62


def group(folder, limit, used, cached, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(
        names, (limit, used, f"anon 5\n{names[3]} {cached}"), strict=False
    ):
        (folder / name).write_text(f"{value}\n")


def test_free_memory_respects_control_groups(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    new = ("memory.max", "memory.current", "memory.stat", "active_file")
    group(root / "job" / "step", "max", 70, 0, new)  # no limit of its own
    group(root / "job", 100, 70, 10, new)
    proc.write_text("0::/job/step\n")
    assert _left_in_groups(proc, root) == [40]
    old = (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.stat",
        "total_inactive_file",
    )
    group(
        root / "memory", 50, 20, 1, old
    )  # as a container sees it: its path is the host's
    proc.write_text("3:cpuset:/\n4:hugetlb,memory:/docker/abc\n0::/\n")
    assert _left_in_groups(proc, root) == [31]
    assert _left_in_groups(tmp_path / "none", root) == []


def passes(monkeypatch, free):
    """Largest number of samples a pass, and the bound."""
    sizes = []
    monkeypatch.setattr(
        import_module("vilvm.weights.prepared"), "free_bytes", lambda device: free
    )
    real = sample_passes.SamplePasses.__call__
    monkeypatch.setattr(
        sample_passes.SamplePasses,
        "__call__",
        lambda self, b, s, chunk, p: (sizes.append(chunk), real(self, b, s, chunk, p))[
            1
        ],
    )
    torch.manual_seed(0)
    lvm, x = VAE(50, 2), torch.bernoulli(torch.full((40, 50), 0.5))
    found = vilvm.evaluate(lvm, x, num_samples=400)
    return max(sizes), found.bounds["iwae"]


def test_short_memory_lowers_samples_not_the_bound(monkeypatch):
    plenty, expected = passes(monkeypatch, 2**40)
    short, found = passes(monkeypatch, 20 * 2**20)
    assert plenty == 200
    assert 1 <= short < 100
    assert (
        abs(found.mean - expected.mean)
        < 5 * (found.mc_se**2 + expected.mc_se**2) ** 0.5
    )


@pytest.mark.slow
def test_fewer_chains_too(monkeypatch):
    lvm, x = VAE(50, 2), torch.bernoulli(torch.full((6, 50), 0.5))
    schedule = Schedule(num_chains=4, num_temperatures=2)
    sizes = []
    annealing = import_module("vilvm.evaluation.ais")
    real = annealing._data_in_a_pass

    def recorded(*given):
        sizes.append(real(*given))
        return sizes[-1]

    monkeypatch.setattr(annealing, "_data_in_a_pass", recorded)
    for free in (2**40, 2**17):
        monkeypatch.setattr(
            import_module("vilvm.weights.prepared"),
            "free_bytes",
            lambda device, free=free: free,
        )
        assert ais(lvm, x, schedule).bound.values.isfinite().all()
    assert sizes[0] == 2000
    assert sizes[1] < 6


@pytest.mark.parametrize("free", [1, 10])
def test_at_least_one(monkeypatch, free):
    short, found = passes(monkeypatch, free)
    assert short == 1
    assert found.values.isfinite().all()


class Greedy(torch.nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), which takes more memory than there is at more than `most` samples
    a pass.
    """

    def __init__(self, most, error=None):
        super().__init__()
        self.most, self.error, self.sizes = most, error, []

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            size = z.shape[0] if z.dim() == 2 else 1
            self.sizes.append(size)
            if size > self.most:
                if self.error is not None:
                    raise self.error
                torch.empty(2**50)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 0.5**0.5))


@pytest.mark.parametrize(
    ("most", "taken", "error"),
    [
        (6, 5, None),
        (6, 5, MemoryError()),
        (6, 5, torch.OutOfMemoryError("CUDA out of memory.")),
        (1, 1, None),
    ],
    ids=["host", "Python", "GPU", "down to one"],
)
def test_samples_halve_when_memory_runs_out(capsys, most, taken, error):
    x = torch.linspace(-1, 1, 5)
    lvm = Greedy(most, error)
    found = vilvm.evaluate(lvm, x, num_samples=20, progress=False).bounds["iwae"]
    # the guide is the posterior, so every weight is p(x)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(found.values, evidence.double(), rtol=1e-5, atol=1e-5)
    assert lvm.sizes[-3:] == [taken] * 3
    printed = capsys.readouterr().out.splitlines()
    assert (
        printed[0]
        == "Greedy: memory ran out at 20 samples a pass; they are run 10 at a time."
    )
    assert len(printed) == {5: 2, 1: 4}[taken]
    assert vilvm.log_weights(lvm, x, 20).log_weight.shape == (20, 5)
    assert vilvm.sample(lvm, 20)["x"].shape == (20,)
    assert replicate(lvm, vilvm.posterior(lvm, x, 20))["x"].shape == (20, 5)


def test_one_sample_exceeding_memory_is_reported():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        vilvm.log_weights(Greedy(0), torch.zeros(5), 10)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    )


@pytest.mark.skipif(memory._glibc() is None, reason="not a glibc")
def test_what_the_heap_keeps_is_bounded(monkeypatch):
    widen_heap()
    before, kept = resident(), []
    large = []
    for _ in range(80):
        large.append(torch.zeros(2**20))  # 4 MB each
        kept.append(torch.zeros(2**10))  # so that glibc can return no page on its own
    full = resident()
    large.clear()
    monkeypatch.setattr(memory, "_KEPT", 2**26)
    trim_heap()
    assert full - before > 250 * 2**20
    assert resident() - before < 70 * 2**20


def test_chunks_on_disk_are_read_on_access(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((40, 3), dtype=np.float32))
    data = on_disk(tmp_path / "x.npy")
    read, real = [], type(data.x).__getitem__
    monkeypatch.setattr(
        type(data.x),
        "__getitem__",
        lambda self, index: read.append(1) or real(self, index),
    )
    rest = data.chunks(10)[1:]
    assert [len(rest), len(read)] == [3, 0]
    assert [len(p) for p in rest] == [10, 10, 10]
    assert len(rest[-1].x) == 10
