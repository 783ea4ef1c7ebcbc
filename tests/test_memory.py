"""How many samples go through a network at once where memory is short."""

import pytest
import torch

import vilvm
from models.vae import VAE
from vilvm.evaluation import Schedule, ais, bounds
from vilvm.memory import _left_in_groups, bytes_made, free_bytes


def test_bytes_are_those_of_tensors_made_and_not_of_views():
    x = torch.zeros(1000)
    assert bytes_made(lambda: (x + 1).view(10, 100).t()) == 4000
    assert bytes_made(lambda: x[:5]) == 0
    assert 0 < free_bytes(torch.device("cpu")) < 2**62


def group(folder, limit, used, cached, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used, f"anon 5\n{names[3]} {cached}"), strict=False):
        (folder / name).write_text(f"{value}\n")


def test_a_container_has_what_its_control_groups_leave_it(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    new = ("memory.max", "memory.current", "memory.stat", "active_file")
    group(root / "job" / "step", "max", 70, 0, new)  # no limit of its own
    group(root / "job", 100, 70, 10, new)
    proc.write_text("0::/job/step\n")
    assert _left_in_groups(proc, root) == [40]
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")
    group(root / "memory", 50, 20, 1, old)  # as a container sees it: its path is the host's
    proc.write_text("3:cpuset:/\n4:hugetlb,memory:/docker/abc\n0::/\n")
    assert _left_in_groups(proc, root) == [31]
    assert _left_in_groups(tmp_path / "none", root) == []


def passes(monkeypatch, free):
    """Largest number of samples a pass, and the bound."""
    sizes = []
    monkeypatch.setattr(bounds, "free_bytes", lambda device: free)
    real = bounds.Passes.__call__
    monkeypatch.setattr(
        bounds.Passes, "__call__", lambda self, b, s, chunk, p: (sizes.append(chunk), real(self, b, s, chunk, p))[1]
    )
    torch.manual_seed(0)
    lvm, x = VAE(50, 2), torch.bernoulli(torch.full((40, 50), 0.5))
    found = vilvm.evaluate(lvm, x, num_samples=400)
    return max(sizes), found.bounds["iwae"]


def test_fewer_samples_a_pass_where_memory_is_short_and_the_same_bound(monkeypatch):
    plenty, expected = passes(monkeypatch, 2**40)
    short, found = passes(monkeypatch, 20 * 2**20)
    assert plenty == 200
    assert 1 <= short < 100
    assert abs(found.mean - expected.mean) < 5 * (found.mc_se**2 + expected.mc_se**2) ** 0.5


@pytest.mark.slow
def test_fewer_chains_too(monkeypatch):
    lvm, x = VAE(50, 2), torch.bernoulli(torch.full((6, 50), 0.5))
    schedule = Schedule(num_chains=4, num_temperatures=2)
    sizes = []
    from vilvm.evaluation import annealing

    real = annealing.in_parts
    monkeypatch.setattr(annealing, "in_parts", lambda lvm, data, size: (sizes.append(size), real(lvm, data, size))[1])
    for free in (2**40, 2**17):
        monkeypatch.setattr(bounds, "free_bytes", lambda device, free=free: free)
        assert ais(lvm, x, schedule).bound.values.isfinite().all()
    assert sizes[0] == 2000
    assert sizes[1] < 6


@pytest.mark.parametrize("free", [1, 10])
def test_at_least_one(monkeypatch, free):
    short, found = passes(monkeypatch, free)
    assert short == 1
    assert found.values.isfinite().all()
