"""Passes of samples through a pair, some at a time: what every bound is summed from; compiled
where that pays.

Of every batch the first pass is run as it is written, with Pyro's checks. If the rest is to be
compiled, a pass is traced once, and held against that first one of every batch on the same noise;
where they differ, or where no graph can be made, all passes are eager from there on, and one line
says so.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import Compiler, UntraceableError, assert_matches, inductor, program, shapes
from vilvm._runtime.memory import is_out_of_memory, trim_heap
from vilvm._runtime.random import preserved_rng, rng_state, set_rng_state
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.lvm import LatentVariableModel
from vilvm.weights import Layout, LogWeights, sample_pass, weigh
from vilvm.weights._vectorisation import ONE_BY_ONE, way_of
from vilvm.weights.log_weights import log_weights_pass

__all__ = ["WORTH_COMPILING", "SamplePasses"]

WORTH_COMPILING = 2000  # passes, from which a compiler's seconds are earned back


class SamplePasses:
    """log w, rate and distortion of samples.

    Arguments:
        lvm: the model and guide, in evaluation mode.
        compile: whether passes after the first of a batch are compiled.
        log: is given the one line that says why they are not.
        compiler: makes a program of a function of tensors.
    """

    def __init__(
        self,
        lvm: LatentVariableModel,
        compile: bool,
        log: Callable[[str], None] = print,
        compiler: Compiler | None = None,
    ):
        self.lvm, self.log, self.compiler = lvm, log, inductor if compiler is None else compiler
        self.compiles = compile
        self._program: tuple[Any, Callable[..., list[Tensor]]] | None = None

    def __call__(
        self, batch: Any, num_samples: int, chunk: int, layout: Layout
    ) -> Iterator[list[Tensor]]:
        """The three terms, float64, each of shape (samples of this pass, num_data), num_data being
        1 for joint weights.
        """
        done, made = 0, None
        while done < num_samples:
            size = min(chunk, num_samples - done)
            if not done:
                before = rng_state(tensors_of(batch)[0].device)
                found = self._eager(batch, size, layout, first=True)
                if self.compiles and num_samples >= 2 * chunk:
                    made = self._program_for(batch, size, layout, found, before)
            else:
                runs = made if self.compiles and size == chunk else None
                found = (
                    self._eager(batch, size, layout)
                    if runs is None
                    else self._compiled(runs, batch, size, layout)
                )
            yield found
            done += size
        trim_heap()

    def _eager(self, batch: Any, size: int, layout: Layout, first: bool = False) -> list[Tensor]:
        return terms(weigh(self.lvm, batch, size, layout, validate=first, check=first))

    def _compiled(
        self, made: Callable[..., list[Tensor]], batch: Any, size: int, layout: Layout
    ) -> list[Tensor]:
        given = tensors_of(batch)
        before = rng_state(given[0].device)
        try:
            found = made(*given)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.compiles, found = False, None
        if found is None:  # the eager pass takes as many samples at once as fit
            set_rng_state(before, given[0].device)
            self.log(
                f"The evaluation of {type(self.lvm).__name__} runs eagerly, for its program ran "
                "out of memory."
            )
            return self._eager(batch, size, layout)
        if bool(torch.stack([t.isnan().any() for t in found]).any()):
            set_rng_state(before, given[0].device)
            # which meets the same NaN, and names the site
            return self._eager(batch, size, layout, first=True)
        return found

    def _program_for(
        self, batch: Any, size: int, layout: Layout, eager: list[Tensor], before: Any
    ) -> Callable[..., list[Tensor]] | None:
        """The program, if it gives for this batch what the eager pass gave from the generators as
        they were before; None where there is none.
        """
        given = tensors_of(batch)
        key, device = (size, shapes(given)), given[0].device
        if layout.subsample or (self._program is not None and self._program[0] != key):
            # what is in a subsample is drawn once a batch, in Python; and a smaller last batch is
            # not worth a program
            return None
        try:
            if self._program is None:
                self._program = key, self._made(batch, size, layout)
            made = self._program[1]
            with preserved_rng(device):
                set_rng_state(before, device)
                assert_matches(
                    dict(zip(("log weight", "rate", "distortion"), eager, strict=True)),
                    lambda: made(*given),
                )
        except UntraceableError as error:
            self.compiles = False
            self.log(
                f"The evaluation of {type(self.lvm).__name__} is not compiled, and runs eagerly: "
                f"{error}."
            )
            return None
        return made

    def _made(self, batch: Any, size: int, layout: Layout) -> Callable[..., list[Tensor]]:
        """A pass as a program; samples that go through the pair one by one, through a program of
        the single-sample run.
        """
        given = tensors_of(batch)
        alone = (
            size > 1
            and way_of(self.lvm, batch, log_weights_pass(self.lvm, layout), layout.vectorisation)
            == ONE_BY_ONE
        )

        def function(*inputs: Tensor) -> list[Tensor]:
            rest = iter(inputs)
            return terms(
                sample_pass(
                    self.lvm,
                    map_tensors(lambda _: next(rest), batch),
                    layout,
                    None if alone else size,
                )
            )

        with preserved_rng(given[0].device):
            made = program(
                function, given, self.compiler, [self.lvm, self.lvm.model, self.lvm.guide]
            )
        if not alone:
            return made
        return lambda *inputs: [
            torch.cat(term) for term in zip(*(made(*inputs) for _ in range(size)), strict=True)
        ]


def terms(weights: LogWeights) -> list[Tensor]:
    """log w, rate and distortion of every sample, float64, shape (num_samples, num_data), num_data
    being 1 for joint weights.
    """
    log_w = weights.log_weight
    found = [
        log_w,
        weights.rate if weights.rate.numel() else torch.zeros_like(log_w),
        -weights.log_likelihood,
    ]
    if log_w.dim() == 1:
        found = [(term.sum(-1) if term.dim() == 2 else term).unsqueeze(-1) for term in found]
    return [term.double() for term in found]
