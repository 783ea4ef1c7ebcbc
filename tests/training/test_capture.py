"""A captured step, with a stand-in for CUDA graphs: what is copied, captured again, and refused.

No GPU is needed: the stand-in records the operations on the CPU and repeats them at fixed
addresses, as a graph would.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vilvm.training._capture import Captured


class FakeGraph(TorchDispatchMode):
    """Records operations, and repeats them into the tensors that they made.

    A capture runs nothing: the tensors that it has changed get their values back.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self.before = {}

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, value in self.before.values():
            tensor.copy_(value)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for t in args:
            if isinstance(t, torch.Tensor):
                self.before.setdefault(t.data_ptr(), (t, t.clone()))
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self):
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            if isinstance(made, torch.Tensor) and again.data_ptr() != made.data_ptr():
                made.copy_(again)


class Stream:
    def __init__(self, *_):
        pass

    def wait_stream(self, _):
        pass


@contextmanager
def nothing(*_):
    yield


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    """CUDA's graphs and streams, on the CPU; the graphs that were captured."""
    graphs = []

    @contextmanager
    def capturing(graph):
        graphs.append(graph)
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nothing)
    monkeypatch.setattr(torch.cuda, "device", nothing)
    return graphs


def step(given, fixed):
    """Adds noise, scaled by the given number, to a parameter; returns its sum."""
    (scale,), (parameter,) = given, fixed
    parameter.add_(scale * torch.randn(3))
    return [parameter.sum()]


def test_replay_reads_new_inputs_and_moves_the_parameter(cuda):
    parameter, expected = torch.zeros(3), torch.zeros(3)
    captured = Captured(step, [parameter], log=pytest.fail)
    scales = [torch.tensor(float(i)) for i in range(1, 5)]
    torch.manual_seed(0)
    found = [captured(scale) for scale in scales]
    torch.manual_seed(0)
    sums = [step([scale], [expected]) for scale in scales]
    assert len(cuda) == 1
    torch.testing.assert_close(found, sums)  # copies, which later replays do not change
    torch.testing.assert_close(parameter, expected)


def test_step_is_captured_again_when_a_tensor_has_moved(cuda):
    parameter = torch.zeros(3)
    captured = Captured(step, [parameter], log=pytest.fail)
    captured(torch.tensor(1.0))
    captured(torch.tensor(1.0))
    assert len(cuda) == 1
    parameter.data = torch.zeros(3)
    captured(torch.tensor(1.0))
    assert len(cuda) == 2


def test_failed_capture_is_said_once_and_kernels_are_launched(monkeypatch):
    @contextmanager
    def refused(graph):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refused)
    parameter, lines = torch.zeros(3), []
    captured = Captured(step, [parameter], lines.append)
    torch.manual_seed(0)
    found = [captured(torch.tensor(2.0))[0].item() for _ in range(2)]
    torch.manual_seed(0)
    expected = torch.zeros(3)
    assert found == [step([torch.tensor(2.0)], [expected])[0].item() for _ in range(2)]
    (line,) = lines
    assert "kernel by kernel" in line
    assert "not permitted when stream is capturing." in line
