"""Passes of samples through a pair, compiled if it saves time; every bound sums their terms.

The first pass of every batch runs eagerly, with Pyro's checks. To compile the others, a pass is
traced once. For each batch, the compiled pass must equal the first one on the same noise. If they
differ, or tracing fails, all later passes run eagerly, and one line reports why.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import (
    Compiler,
    UntraceableError,
    assert_matches,
    machine_code,
    program,
    shapes,
)
from vilvm._runtime.memory import is_out_of_memory, trim_heap
from vilvm._runtime.random import preserved_rng, rng_state, set_rng_state
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.lvm import LatentVariableModel
from vilvm.weights import Layout, LogWeights, sample_pass, weigh
from vilvm.weights._vectorisation import ONE_BY_ONE, strategy_of
from vilvm.weights.log_weights import log_weights_pass

__all__ = ["WORTH_COMPILING", "SamplePasses"]

WORTH_COMPILING = 2000  # passes above which compilation saves time


class SamplePasses:
    """Computes log w, rate and distortion of samples, for the batches of one pair.

    Arguments:
        lvm: the model and guide, in evaluation mode.
        compile: whether to compile the passes after the first of a batch.
        log: receives the line that reports why compilation failed.
        compiler: makes a program of a function of tensors; Inductor by default.

    Examples:
        >>> import torch
        >>> from vilvm import prepare
        >>> from vilvm.evaluation.sample_passes import SamplePasses
        >>> from vilvm.models.vae import VAE
        >>> prepared = prepare(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6))
        >>> with prepared.running():
        ...     passes = SamplePasses(prepared.lvm, compile=False)
        ...     part = prepared.part(0)
        ...     terms = passes(part.batch, num_samples=10, chunk=4, layout=part.layout)
        ...     [log_w.shape[0] for log_w, rate, distortion in terms]
        [4, 4, 2]
    """

    def __init__(
        self,
        lvm: LatentVariableModel,
        compile: bool,
        log: Callable[[str], None] = print,
        compiler: Compiler | None = None,
    ):
        self.lvm, self.log, self.compiles = lvm, log, compile
        self.compiler = compiler or machine_code
        self._program: tuple[Any, Callable[..., list[Tensor]]] | None = None

    def __call__(
        self, batch: Any, num_samples: int, chunk: int, layout: Layout
    ) -> Iterator[list[Tensor]]:
        """Runs `num_samples` samples of a batch, `chunk` at a time.

        Yields log w, rate and distortion, float64, each of shape (samples of this pass, num_data);
        num_data is 1 for joint weights.
        """
        size, compiled = min(chunk, num_samples), None
        before = rng_state(tensors_of(batch)[0].device)
        found = self._eager(batch, size, layout, first=True)
        if self.compiles and num_samples >= 2 * chunk:
            compiled = self._program_for(batch, size, layout, found, before)
        yield found
        for done in range(size, num_samples, chunk):
            size = min(chunk, num_samples - done)
            if compiled is not None and self.compiles and size == chunk:
                yield self._compiled(compiled, batch, size, layout)
            else:
                yield self._eager(batch, size, layout)
        trim_heap()

    def _eager(
        self, batch: Any, size: int, layout: Layout, first: bool = False
    ) -> list[Tensor]:
        return _terms(weigh(self.lvm, batch, size, layout, validate=first, check=first))

    def _compiled(
        self,
        compiled: Callable[..., list[Tensor]],
        batch: Any,
        size: int,
        layout: Layout,
    ) -> list[Tensor]:
        given = tensors_of(batch)
        before = rng_state(given[0].device)
        try:
            found = compiled(*given)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.compiles, found = False, None
        if found is None:
            # An eager pass runs fewer samples at once if memory is short.
            set_rng_state(before, given[0].device)
            self.log(
                f"The evaluation of {type(self.lvm).__name__} runs eagerly, because its program "
                "ran out of memory."
            )
            return self._eager(batch, size, layout)
        if bool(torch.stack([t.isnan().any() for t in found]).any()):
            # The eager pass on the same noise raises the error that names the site.
            set_rng_state(before, given[0].device)
            return self._eager(batch, size, layout, first=True)
        return found

    def _program_for(
        self, batch: Any, size: int, layout: Layout, eager: list[Tensor], before: Any
    ) -> Callable[..., list[Tensor]] | None:
        """The compiled pass, if it equals the eager one on this batch; None otherwise.

        Both start from the generators' states `before`.
        """
        given = tensors_of(batch)
        key, device = (size, shapes(given)), given[0].device
        if layout.subsample or (self._program is not None and self._program[0] != key):
            # A subsample is drawn in Python, once per batch. A smaller last batch is not worth a
            # program.
            return None
        try:
            if self._program is None:
                self._program = key, self._new_program(batch, size, layout)
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

    def _new_program(
        self, batch: Any, size: int, layout: Layout
    ) -> Callable[..., list[Tensor]]:
        """A pass as a program.

        If samples must run one by one, it repeats a program of a single-sample run.
        """
        given, parts = tensors_of(batch), [self.lvm, self.lvm.model, self.lvm.guide]
        run, at_once = log_weights_pass(self.lvm, layout), size
        if (
            size > 1
            and strategy_of(self.lvm, batch, run, layout.vectorisation) == ONE_BY_ONE
        ):
            at_once = None

        def function(*inputs: Tensor) -> list[Tensor]:
            rest = iter(inputs)
            again = map_tensors(lambda _: next(rest), batch)
            return _terms(sample_pass(self.lvm, again, layout, at_once))

        with preserved_rng(given[0].device):
            made = program(function, given, self.compiler, parts)
        if at_once is not None:
            return made

        def repeated(*inputs: Tensor) -> list[Tensor]:
            runs = [made(*inputs) for _ in range(size)]
            return [torch.cat(term) for term in zip(*runs, strict=True)]

        return repeated


def _terms(weights: LogWeights) -> list[Tensor]:
    """log w, rate and distortion of every sample, float64, shape (num_samples, num_data).

    num_data is 1 for joint weights.
    """
    log_w, rate, distortion = weights.log_weight, weights.rate, -weights.log_likelihood
    if not rate.numel():
        rate = torch.zeros_like(log_w)
    found = [log_w, rate, distortion]
    if log_w.dim() == 1:
        found = [term.reshape(len(term), -1).sum(-1, keepdim=True) for term in found]
    return [term.double() for term in found]
