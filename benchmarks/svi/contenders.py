"""The contenders. Each takes `count` training steps with Adam at 1e-3, as its users write them,
and returns the loss per datum of each step.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.svi.workloads import Workload
from vilvm.data import Data
from vilvm.lvm import module_parameters
from vilvm.training._batches import Batches
from vilvm.training._loop import Loop
from vilvm.training._preparation import prepare
from vilvm.training._recorder import Recorder
from vilvm.training._run import RunSpec
from vilvm.training._state import Checkpoints
from vilvm.training.optimizers import adam

__all__ = ["BASE", "FLOOR", "Steps", "contenders"]

Steps = Callable[[int], list[float]]
BASE, FLOOR = "PyTorch by hand, eager", "floor: the matrix products alone"
LR = 1e-3


def contenders(
    workload: Workload, data: Any, batch: int | None, device: str = "cpu"
) -> dict[str, Callable[[], Steps]]:
    """Functions that make the steps, by name; all start from the same parameters."""

    def made(by_hand: bool = False) -> Any:
        torch.manual_seed(0)
        return ((workload.by_hand if by_hand else None) or workload.make)().to(device)

    draw = _batches(data, batch)
    found = {
        BASE: lambda: by_hand(made(True), draw, torch.optim.Adam),
        "PyTorch by hand, eager, fused Adam": lambda: by_hand(made(True), draw, _fused),
        "PyTorch by hand, torch.compile, fused Adam": lambda: by_hand(
            made(True), draw, _fused, compiled=True
        ),
        "Pyro SVI.step": lambda: pyro_svi(made(), draw, batch, workload.objective()),
        "vilvm eager": lambda: vilvm_fit(
            made(), data, batch, False, workload.objective()
        ),
        "vilvm compiled": lambda: vilvm_fit(
            made(), data, batch, True, workload.objective()
        ),
    }
    if device == "cuda":
        found["PyTorch by hand, one CUDA graph"] = lambda: by_hand_graph(
            made(True), draw
        )
    if batch is not None:
        found[FLOOR] = lambda: floor(made(True), draw())
    return found


def _fused(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def _batches(data: Any, batch: int | None) -> Callable[[], Any]:
    """A batch drawn anew at every call; all data if there are no batches."""
    if batch is None:
        return lambda: data
    return lambda: data[torch.randint(len(data), (batch,), device=data.device)]


def _read(losses: list[Tensor]) -> list[float]:
    """The losses as numbers, in one transfer."""
    return torch.stack(losses).tolist()


def by_hand(
    net: Any, draw: Callable[[], Any], optimizer: Any, compiled: bool = False
) -> Steps:
    adam = optimizer(net.parameters(), lr=LR)
    loss_of = torch.compile(net.loss) if compiled else net.loss

    def steps(count: int) -> list[float]:
        losses = []
        for _ in range(count):
            adam.zero_grad()
            loss = loss_of(draw())
            loss.backward()
            adam.step()
            losses.append(loss.detach())
        return _read(losses)

    return steps


def by_hand_graph(net: Any, draw: Callable[[], Any]) -> Steps:
    """The whole step as one CUDA graph: loss, gradients, Adam."""
    adam = torch.optim.Adam(net.parameters(), lr=LR, fused=True, capturable=True)
    batch = draw()
    static = (
        batch.clone() if isinstance(batch, Tensor) else tuple(t.clone() for t in batch)
    )

    def step() -> Tensor:
        adam.zero_grad()
        loss = net.loss(static)
        loss.backward()
        adam.step()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    adam.zero_grad()  # a replay must overwrite gradients, not add to them
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def steps(count: int) -> list[float]:
        losses = []
        for _ in range(count):
            if isinstance(static, Tensor):
                static.copy_(draw())
            graph.replay()
            losses.append(loss.clone())
        return _read(losses)

    return steps


def pyro_svi(
    lvm: Any, draw: Callable[[], Any], batch: int | None, objective: Any
) -> Steps:
    pyro.clear_param_store()
    # In another memory format, Pyro's parameter store does not share the network's parameters.
    lvm.to(memory_format=torch.contiguous_format)
    adam = pyro.optim.Adam({"lr": LR})  # type: ignore[attr-defined]
    svi = SVI(lvm.model, lvm.guide, adam, objective)
    store = pyro.get_param_store().get_state()

    def steps(count: int) -> list[float]:
        nonlocal store
        pyro.get_param_store().set_state(store)
        with pyro.validation_enabled(False):
            losses: list[Any] = [svi.step(draw()) for _ in range(count)]
        store = pyro.get_param_store().get_state()
        return [float(loss) / (batch or 1) for loss in losses]

    return steps


class _WithoutRecords(Recorder):
    @property
    def next_step(self) -> int:
        return self.run.spec.total


def vilvm_fit(
    lvm: Any, data: Any, batch: int | None, compiled: bool, objective: Any = None
) -> Steps:
    """The steps of ``vilvm.fit``, without its records and checkpoints."""
    first = data if isinstance(data, Tensor) else data[0]
    spec = RunSpec(
        lvm=lvm,
        objective=objective or Trace_ELBO(),
        batches=Batches(Data(data), batch or len(first), 0),
        total=10**9,
        record_steps=10**9,
        device=first.device,
        compile=compiled,
    )
    with module_parameters(lvm):
        run = prepare(spec, adam(first.device), None, ExitStack())
    loop, state = Loop(run, Checkpoints(run)), run.state
    loop.recorder = _WithoutRecords(run)

    def steps(count: int) -> list[float]:
        losses, end = [], state.step + count
        run.spec = replace(spec, total=end)
        with module_parameters(lvm):
            while state.step < end:
                before, applied, loss = (
                    state.step,
                    state.tally.applied,
                    state.tally.loss,
                )
                loop.take_steps()
                taken = state.tally.applied - applied
                losses += [(state.tally.loss - loss) / taken] * (state.step - before)
        assert not compiled or run.compiled.refused is None, run.compiled.refused
        return losses

    return steps


class _Products(TorchDispatchMode):
    """Records every matrix product and convolution, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        aten = torch.ops.aten
        if func in (aten.mm.default, aten.addmm.default):
            a, b = (
                torch.empty_strided(t.shape, t.stride(), device=t.device).normal_()
                for t in args[-2:]
            )
            out = torch.mm(a, b)
            self.calls.append(lambda: torch.mm(a, b, out=out))
        elif func in (aten.convolution.default, aten.convolution_backward.default):
            own = [a.clone() if isinstance(a, Tensor) else a for a in args]
            self.calls.append(lambda: func(*own, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def floor(net: Any, batch: Tensor) -> Steps:
    """A lower bound on the time of a step: its matrix products alone, on prepared tensors."""
    with _Products() as products:
        net.loss(batch).backward()

    @torch.no_grad()
    def steps(count: int) -> list[float]:
        for _ in range(count):
            for call in products.calls:
                call()
        return []

    return steps
