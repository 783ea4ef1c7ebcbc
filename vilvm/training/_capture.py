"""A compiled step as one CUDA graph: one launch a step, without synchronisation.

What changes from step to step (the batch, the numbers of Adam) is copied into tensors at fixed
addresses; parameters, buffers and moments have fixed addresses. Noise is torch's own: its
generator is registered with the graph at capture, and a replay continues from its current state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.random import preserved_rng

__all__ = ["Captured"]

_WARM_UP = 3  # runs before the capture, in which kernels are loaded and chosen


class Captured:
    """A function captured as a CUDA graph at its first call, and again if an address changes.

    Arguments:
        run: takes the changing tensors and the fixed ones, as two lists; may change the fixed ones
            in place.
        fixed: tensors on a GPU with fixed addresses.
        log: receives one line if there can be no graph; kernels are then launched one by one.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Tensor], Sequence[Tensor]], Any],
        fixed: Sequence[Tensor],
        log: Callable[[str], None],
    ):
        self.run = run
        self.fixed = fixed
        self.log = log
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: list[Tensor] = []
        self._found: list[Tensor] = []
        self._addresses: list[int] = []
        self._refused = False

    def __call__(self, *given: Tensor) -> list[Tensor]:
        """The outputs of `run`, as copies."""
        addresses = [t.data_ptr() for t in self.fixed]
        moved = addresses != self._addresses
        if not self._refused and (self._graph is None or moved):
            self._addresses = addresses
            self._capture(given)
        if self._graph is None:
            return list(self.run(given, self.fixed))
        for own, new in zip(self._given, given, strict=True):
            own.copy_(new, non_blocking=True)
        self._graph.replay()
        return [t.clone() for t in self._found]

    def _capture(self, given: Sequence[Tensor]) -> None:
        device = self.fixed[0].device
        self._given = [t.to(device, copy=True) for t in given]
        self._graph = None
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(device)
        try:
            with torch.cuda.device(device), preserved_rng(device):
                side.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UP):
                        self.run(self._given, [t.clone() for t in self.fixed])
                torch.cuda.current_stream(device).wait_stream(side)
                with torch.cuda.graph(graph):
                    self._found = list(self.run(self._given, self.fixed))
        except RuntimeError as error:
            self._refused = True
            self.log(
                "The compiled step is launched kernel by kernel, because CUDA cannot capture a "
                f"graph of it: {str(error).splitlines()[0]}."
            )
            return
        self._graph = graph
