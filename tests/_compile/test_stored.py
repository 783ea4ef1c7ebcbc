"""Inductor's programs are found again by another process, and only if nothing differs."""

import subprocess
import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vilvm._compile import graph, stored

PROGRAM = """
import sys
import torch
from vilvm._compile import inductor

def function(x, w):
    w.mul_(0.5)
    return [torch.relu(x @ w).sum(0), x + torch.randn(64, 300)]

torch.manual_seed(0)
x, w = torch.randn(64, 300), torch.randn(300, 200)
expected = [t.clone() for t in (x, w)]
torch.manual_seed(1)
expected = [*function(*expected), expected[1]]
run = inductor(function, [x, w])
torch.manual_seed(1)
found = [*run(x, w), w]
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
print("torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.slow
def test_another_process_needs_no_inductor(monkeypatch, tmp_path):
    monkeypatch.setenv("VILVM_CACHE", str(tmp_path))
    imported = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert imported == [["True"], ["False"]]
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"no library")
    assert stored.load(kept) is None


def scaled(x):
    return [2 * x]


def test_path_depends_on_all_that_changes_the_program(monkeypatch):
    x = torch.zeros(3)

    def where(function=scaled, example=x, options="1"):
        return stored.where(graph(function, [example]), [example], options)

    paths = {where(), where()}
    assert len(paths) == 1
    paths |= {where(lambda x: [3 * x]), where(example=x.double()), where(options="2")}
    paths |= {where(example=torch.zeros(4)), where(example=torch.zeros(6)[::2])}
    monkeypatch.setenv("TORCHINDUCTOR_FREEZING", "1")
    paths.add(where())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    paths.add(where())
    torch.set_num_threads(threads)
    assert len(paths) == 8


def test_graph_with_constants_has_no_path():
    constant = torch.tensor([1.0, 2.0])
    x = torch.zeros(2)
    traced = make_fx(lambda x: [x + constant])(x)
    assert stored.where(traced, [x], "") is None


def test_no_program_is_found_where_none_is(tmp_path):
    assert stored.load(None) is None
    assert stored.load(tmp_path / "missing.so") is None
