"""C source as a loaded library, kept on disk, and programs that call it."""

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from vilvm._compile.cache import compiler, path_of
from vilvm._compile.native._source import is_known, source_of
from vilvm._compile.native._views import NotNative
from vilvm._runtime.files import atomic

__all__ = ["NativeProgram", "native"]

_MOST_INPUT = 2**16  # bytes; a program reads larger inputs slower than it is worth
# Numbers as in torch: no fused multiply-add, and NaN and infinity as the standard has them.
_FLAGS = [
    "-x",
    "c++",
    "-std=c++17",
    "-O2",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
]
_STATE_BYTES = 5056  # of torch's generator on a CPU
_FAILURES = {
    1: "torch's generator gave no noise",
    2: "an index is out of bounds",
}


class NativeProgram:
    """A compiled function of small tensors on a CPU.

    Arguments:
        made: from ``library``.
        inputs: examples.
        outputs: examples of the results.
    """

    def __init__(
        self, made: ctypes.CDLL, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ):
        self._run = made.run
        self._inputs = [_layout(t) for t in inputs]
        by_torch = ctypes.c_int32.in_dll(made, "draws_by_torch").value
        self._draws = not by_torch and _draws_as_torch(made)
        self._outputs = [(tuple(t.shape), t.dtype) for t in outputs]
        self._zeros = (ctypes.c_int64 * max(1, len(outputs)))()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The results; inputs may be changed in place.

        Arguments:
            inputs: of the shapes, strides and types of the examples.

        Raises:
            RuntimeError: an input is not, or an index is out of bounds.
        """
        if [_layout(t) for t in inputs] != self._inputs:
            raise RuntimeError("inputs of other shapes, strides or types")
        outputs = [
            torch.empty(shape, dtype=dtype, device="cpu")
            for shape, dtype in self._outputs
        ]
        none = (ctypes.c_int64 * max(1, len(inputs)))()
        self._call((inputs, none), (outputs, self._zeros))
        return outputs

    def repeat(
        self,
        count: int,
        inputs: Sequence[Tensor],
        steps: Sequence[int],
        outputs: Sequence[Tensor],
    ) -> None:
        """Calls the program `count` times, without Python between the calls.

        Arguments:
            count: of calls.
            inputs: those of the first call. An input may lie within an output, so that a call
                reads what an earlier one has written.
            steps: by input, how many bytes further the input of the next call lies.
            outputs: receive the results of all calls, stacked, shape (count, ...) each.
        """
        strides = [t[0].nbytes for t in outputs]
        out_steps = (ctypes.c_int64 * max(1, len(outputs)))(*strides)
        in_steps = (ctypes.c_int64 * max(1, len(inputs)))(*steps)
        if not self._draws:
            self._call((inputs, in_steps), (outputs, out_steps), count)
            return
        # torch's functions take most of the time of a short program.
        generator = torch.get_rng_state()
        self._call(
            (inputs, in_steps), (outputs, out_steps), count, generator.data_ptr()
        )
        torch.set_rng_state(generator)

    def _call(
        self,
        inputs: tuple[Sequence[Tensor], Any],
        outputs: tuple[Sequence[Tensor], Any],
        count: int = 1,
        generator: int | None = None,
    ) -> None:
        """Calls the library with tensors and the steps between those of two calls."""
        failed = self._run(
            _addresses(inputs[0]),
            inputs[1],
            len(inputs[0]),
            _addresses(outputs[0]),
            outputs[1],
            len(outputs[0]),
            count,
            _torch_functions(),
            generator,
        )
        if failed:
            raise RuntimeError(_FAILURES[failed])


def native(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]
) -> NativeProgram:
    """A function as a native program, which also changes its inputs in place as `function` does.

    Arguments:
        function: of tensors; must be traceable.
        inputs: such tensors, on a CPU.

    Raises:
        NotNative: a tensor is large or not on a CPU, an operation is not among those that native
            programs have, or there is no C++ compiler.
    """
    from torch.func import functionalize

    flat = [t.detach() for t in inputs]
    if any(t.device.type != "cpu" for t in flat) or not hasattr(os, "getuid"):
        raise NotNative("not on a CPU, or on Windows")
    if sum(t.nbytes for t in flat) > _MOST_INPUT:
        raise NotNative("large tensors")
    _torch_functions()
    try:
        with torch.no_grad():
            module = make_fx(
                functionalize(function),
                decomposition_table=_decompositions(),
                tracing_mode="fake",
            )(*flat)
    except Exception as error:  # what torch's functionalisation or decompositions lack
        raise NotNative(str(error).split("\n", 1)[0]) from error
    (results,) = next(iter(module.graph.find_nodes(op="output"))).args
    source = source_of(module.graph, flat)
    return NativeProgram(library(source), flat, [n.meta["val"] for n in results])


@cache
def _decompositions() -> Any:
    """torch's definitions of operations by simpler ones."""
    from torch._decomp import decomposition_table

    return {o: d for o, d in decomposition_table.items() if not is_known(o)}


def library(source: str) -> ctypes.CDLL:
    """The library of a C source; compiled once, then kept on disk.

    Raises:
        NotNative: it cannot be compiled.
    """
    path = path_of(source, *_FLAGS)
    if not path.exists():
        _compile(source, path)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotNative(f"its library cannot be loaded ({error})") from None
    loaded.run.argtypes = [
        *[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64] * 2,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    loaded.normals.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    return loaded


_AGREES: list[bool] = []  # whether noise drawn in C is that of this version of torch


def _draws_as_torch(made: ctypes.CDLL) -> bool:
    """Whether a library draws the normal numbers that torch draws, and moves its generator so."""
    if not _AGREES:
        generator = torch.Generator().manual_seed(20)
        own = generator.get_state()
        # more than the 624 words after which the generator makes new ones
        counts = [1, 8, 15, *[14] * 30]
        expected = torch.cat([torch.randn(n, generator=generator) for n in counts])
        found = torch.empty(sum(counts))
        if len(own) == _STATE_BYTES:
            made.normals(own.data_ptr(), len(found), found.data_ptr())
        same = torch.equal(own, generator.get_state())
        _AGREES.append(same and torch.equal(found, expected))
    return _AGREES[0]


def _compile(source: str, path: Path) -> None:
    """Compiles a library."""
    found = compiler()
    if found is None:
        raise NotNative("no C++ compiler")

    try:
        with atomic(path) as to:
            command = [found, *_FLAGS, "-", "-o", str(to)]
            done = subprocess.run(
                command, input=source, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise NotNative(f"the C++ compiler fails: {done.stderr[:200]}")
    except OSError as error:
        raise NotNative(f"its library cannot be written ({error})") from None


class _Functions(ctypes.Structure):
    """``struct Torch`` of the source: addresses of functions of torch's C interface."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("normal", "uniform", "data", "release")
    )


@cache
def _torch_functions() -> Any:
    """The functions by which a program draws noise, passed by reference."""
    names = ("cpu_randn", "cpu_rand", "get_data_ptr", "delete_tensor_object")
    where = Path(torch.__file__).parent / "lib"
    found = [*where.glob("libtorch_cpu.so"), *where.glob("libtorch_cpu.dylib")]
    if not found:
        raise NotNative("torch's library is not where it usually is")
    try:
        loaded = ctypes.CDLL(str(found[0]))
        functions = [
            ctypes.cast(getattr(loaded, f"aoti_torch_{n}"), ctypes.c_void_p)
            for n in names
        ]
    except (OSError, AttributeError) as error:
        raise NotNative(f"torch's library lacks a function ({error})") from None
    return ctypes.pointer(_Functions(*(f.value for f in functions)))


def _layout(t: Tensor) -> tuple[Any, ...]:
    """Where the elements of a tensor lie; the stride of a single entry says nothing."""
    return t.shape, t.dtype, t.is_contiguous() or t.stride()


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(t.data_ptr() for t in tensors))
