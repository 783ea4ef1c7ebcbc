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

from vilvm._compile.cache import compiler, kept, path_of
from vilvm._compile.native._source import is_known, source_of
from vilvm._compile.native._views import NotNative

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
_FAILURES = {
    1: "torch's generator gave no noise",
    2: "an index is out of bounds",
}


class NativeProgram:
    """A compiled function of small tensors on a CPU.

    Arguments:
        run: from a library of ``library``.
        outputs: examples of the results.
    """

    def __init__(self, run: Any, outputs: Sequence[Tensor]):
        self._run = run
        self._outputs = [(tuple(t.shape), t.dtype) for t in outputs]
        self._zeros = (ctypes.c_int64 * max(1, len(outputs)))()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The results; inputs may be changed in place.

        Arguments:
            inputs: of the shapes, strides and types of the examples.
        """
        outputs = [
            torch.empty(shape, dtype=dtype, device="cpu")
            for shape, dtype in self._outputs
        ]
        none = (ctypes.c_int64 * max(1, len(inputs)))()
        self._call(inputs, none, outputs, self._zeros, 1)
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
        self._call(inputs, in_steps, outputs, out_steps, count)

    def _call(
        self,
        inputs: Sequence[Tensor],
        in_steps: Any,
        outputs: Sequence[Tensor],
        out_steps: Any,
        count: int,
    ) -> None:
        failed = self._run(
            _addresses(inputs),
            in_steps,
            len(inputs),
            _addresses(outputs),
            out_steps,
            len(outputs),
            count,
            _torch_functions(),
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
    return NativeProgram(library(source).run, [n.meta["val"] for n in results])


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
    ]
    return loaded


def _compile(source: str, path: Path) -> None:
    """Compiles a library."""
    found = compiler()
    if found is None:
        raise NotNative("no C++ compiler")

    def make(to: Path) -> None:
        text = to.with_suffix(".cpp")
        text.write_text(source)
        command = [found, *_FLAGS, str(text), "-o", str(to)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotNative(f"the C++ compiler fails: {done.stderr[:200]}")

    try:
        kept(path, make)
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


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(t.data_ptr() for t in tensors))
