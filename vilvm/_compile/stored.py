"""Inductor's programs, kept on disk, which another process calls without importing Inductor.

The import takes several seconds, and Inductor's own cache on disk needs it.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilvm._compile.cache import path_of
from vilvm._compile.tracing import shapes
from vilvm._runtime.files import atomic

__all__ = ["load", "store", "where"]

_ENTRY = "inductor_entry_cpp"  # the module that Inductor's C++ wrapper makes


def where(graph: Any, inputs: Sequence[Tensor], options: str) -> Path | None:
    """Where the program of a graph is kept; None if the text of the graph does not say all.

    Arguments:
        graph: a module of torch.fx.
        inputs: examples, which set shapes, strides and types.
        options: with which Inductor compiles, as text.
    """
    if list(graph.graph.find_nodes(op="get_attr")):  # constants, or graphs within it
        return None
    settings = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith(("TORCHINDUCTOR_", "TORCH_COMPILE"))
    ]
    state = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
    )
    return path_of(graph.code, options, *settings, str(state), str(shapes(inputs)))


def load(path: Path | None) -> Callable[..., Any] | None:
    """The program that is kept at a path; None if there is none."""
    if path is None or not path.exists():
        return None
    with suppress(Exception):  # of another Python, or damaged
        return _loaded(path)
    return None


def store(path: Path | None, program: Any) -> None:
    """Keeps a program that Inductor has made, if it is a library of its own."""
    cells = getattr(getattr(program, "current_callable", None), "__closure__", None)
    if path is None or not cells:
        return
    with suppress(Exception):  # another version of Inductor, or a full disk
        made = cells[0].cell_contents.__self__.__file__
        with atomic(path) as to:
            shutil.copy(made, to)


def _loaded(path: Path) -> Callable[..., Any]:
    """Calls a library as Inductor does."""
    aoti: Any = torch._C._aoti  # type: ignore[attr-defined]
    guards: Any = torch._C._dynamo.guards  # type: ignore[attr-defined]
    # The library reads it when it is loaded.
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(
        guards._torchinductor_pyobject_tensor_data_ptr
    )
    name = f"vilvm_{path.stem}.{_ENTRY}"
    spec = spec_from_loader(name, ExtensionFileLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    entry = getattr(module, _ENTRY)

    def program(*given: Tensor) -> Any:
        handles = entry(aoti.unsafe_alloc_void_ptrs_from_tensors(list(given)))
        return aoti.alloc_tensors_by_stealing_from_void_ptrs(handles)

    return program
