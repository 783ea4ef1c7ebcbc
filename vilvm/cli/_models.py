"""Finds the model that a command names."""

import difflib
import importlib
import importlib.util
import inspect
import math
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vilvm._runtime.rebuildable import is_rebuildable, rebuildable
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.saving import describe, load
from vilvm.saving.load import MODEL_FILE

__all__ = ["MODEL_FILE", "Subject", "subject_of", "trained_columns"]

# arguments of a constructor that are the number of columns of the data
_WIDTHS = ("data_dim", "num_genes", "num_words", "num_covariates")


class Subject(NamedTuple):
    """A model, and what a command needs to know about it.

    Arguments:
        model: the model.
        name: for titles.
        objective: makes its training objective; None for the usual one.
        trained: whether its parameters were loaded.
    """

    model: Any
    name: str
    objective: Callable[[], Any] | None = None
    trained: bool = False


def subject_of(
    spec: str, settings: dict[str, Any], data: Data, *, saved: Path | None = None
) -> Subject:
    """The model that a command line names.

    Arguments:
        spec: a name of the gallery, a class or function ``file.py:Name``, or a saved model.
        settings: arguments of the constructor.
        data: from which sizes are taken that are not set.
        saved: the file whose parameters the model receives.

    Raises:
        ValueError: there is no such model, or it does not take these settings.
    """
    file, colon, name = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return _made(_from_file(Path(file), name), settings, data, saved)
    path = Path(spec)
    if path.exists():
        if settings or saved:
            raise ValueError(
                f"{spec} is a saved model and has its own arguments; leave out --set and --load."
            )
        lvm = load(_file(path))
        return Subject(lvm, type(lvm).__name__, _objective(type(lvm)), trained=True)
    return _made(_of_gallery(spec), settings, data, saved)


def trained_columns(spec: str, target: str | None) -> list[str] | None:
    """The columns, without the target, on which a saved model was trained; None if not known."""
    path = Path(spec)
    if spec.endswith(".py") or ".py:" in spec or not path.exists():
        return None
    found = describe(_file(path)).columns
    if isinstance(found, dict):
        found = [name for names in found.values() for name in names]
    return [name for name in found if name != target] if found else None


def _file(path: Path) -> Path:
    """The file of a saved model, given or in the folder of a run."""
    if not path.is_dir():
        return path
    if not (path / MODEL_FILE).exists():
        raise ValueError(
            f"{path} holds no {MODEL_FILE}; give a folder of vilvm train, or a file of vilvm.save."
        )
    return path / MODEL_FILE


def _of_gallery(name: str) -> Any:
    """The class of a model of the gallery."""
    path = importlib.import_module("vilvm.models").__path__
    known = sorted(m.name for m in pkgutil.iter_modules(path) if not m.ispkg)
    if name not in known:
        raise _unknown(name, known)
    module = importlib.import_module(f"vilvm.models.{name}")
    makers = [vars(module)[n] for n in module.__all__]
    return next(m for m in makers if isinstance(m, type) and hasattr(m, "model"))


def _unknown(name: str, known: list[str]) -> ValueError:
    if re.search(r"[/\\.]", name):
        return ValueError(f"{name}: there is no such file or folder.")
    near = difflib.get_close_matches(name, known, 3, 0.4) or known[:8]
    return ValueError(
        f"there is no model {name!r} in the gallery, and no such file; did you mean "
        f"{', '.join(near)}, or path/to/file.py:Class?"
    )


def _from_file(path: Path, name: str) -> Any:
    """A class or function in a file of the user, which is run."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be imported ({type(error).__name__}: {error})."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{path}: has no class or function {name!r}.")
    return found


def _made(
    maker: Any, settings: dict[str, Any], data: Data, saved: Path | None
) -> Subject:
    name = maker.__name__
    if not isinstance(maker, type):
        if settings or saved:
            raise ValueError(
                f"{name} is a function, which has no constructor; leave out --set and --load."
            )
        return Subject(maker, name)
    if not is_rebuildable(maker) and _has_names(maker):
        rebuildable(maker)  # so that the saved file holds its arguments
    if saved is None:
        return Subject(_constructed(maker, settings, data), name, _objective(maker))
    lvm = _loaded(maker, settings, data, _file(saved))
    return Subject(lvm, name, _objective(maker), trained=True)


def _loaded(maker: Any, settings: dict[str, Any], data: Data, file: Path) -> Any:
    """The saved model; made again if the file holds its arguments and none are given."""
    if not settings and is_rebuildable(maker):
        return load(file, maker)
    lvm = _constructed(maker, settings, data)
    load(file, lvm)
    return lvm


def _constructed(maker: Any, settings: dict[str, Any], data: Data) -> Any:
    arguments = {**_sizes(maker, data), **settings}
    try:
        return maker(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{maker.__name__} cannot be made of {arguments} ({error}); its arguments are "
            f"{', '.join(inspect.signature(maker).parameters)}; give them by --set NAME=VALUE."
        ) from None


def _has_names(maker: Any) -> bool:
    kinds = {p.kind for p in inspect.signature(maker).parameters.values()}
    return not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def _sizes(maker: Any, data: Data) -> dict[str, int]:
    """The sizes that a constructor needs and that the data determine."""
    x = tensors_of(data.x)[0]
    if len(x.shape) != 2:
        return {}
    width, wanted = x.shape[1], inspect.signature(maker).parameters
    found = {name: width for name in _WIDTHS if name in wanted}
    if "side" in wanted and math.isqrt(width) ** 2 == width:
        found["side"] = math.isqrt(width)
    return found


def _objective(maker: Any) -> Any:
    """The function ``objective`` beside a class, for a model without Trace_ELBO."""
    return getattr(sys.modules.get(maker.__module__), "objective", None)


def device_of(choice: str) -> str:
    """The device of an option; "auto" is a GPU if there is one."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; choose --device cpu.")
    if choice != "auto":
        return choice
    return "cuda" if torch.cuda.is_available() else "cpu"
