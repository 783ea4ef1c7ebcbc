"""How a model was made, as JSON, and the model made again.

A recipe names its maker. Only marked makers (``vilvm.lvm.rebuildable``) of the gallery and of
vilvm's wrappers, priors, guides and networks are looked up, and the class that the caller passes:
no name in a file makes Python import anything else. An argument that is a class or a function is
one that these rooms export, an activation of torch, or an autoguide of Pyro.
"""

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pyro.infer.autoguide as autoguides
import torch.nn.modules.activation as activations
from torch import Tensor

from vilvm._runtime.rebuildable import (
    Named,
    Recipe,
    Unrecorded,
    is_rebuildable,
    name_of,
)
from vilvm.saving._file import refused
from vilvm.training.checkpoint import CheckpointError, pack, unpack

__all__ = ["make", "obstacle_to", "pack_recipe", "unpack_recipe"]

_RECIPE, _NAME = "!recipe", "!name"  # no argument is a dict with these keys
_ROOMS = re.compile(
    r"vilvm\.(?:(?:wrappers|priors|guides|networks)(?:\.\w+)?|models\.(\w+))"
)
# classes and functions of other libraries that an argument may be, by name
_FOREIGN = {
    name_of(value): value
    for module in (activations, autoguides)
    for value in (vars(module)[n] for n in module.__all__)
}


def obstacle_to(recipe: Any, own: str, name: str = "") -> str:
    """Why a file cannot hold a recipe, as a clause; empty if it can.

    Arguments:
        recipe: a recipe, or an argument within one.
        own: the maker that the caller of ``load`` may pass.
        name: of the argument.
    """
    if fault := _own_obstacle(recipe, own):
        return f"its argument {name} is {fault}"
    inner = {}
    if isinstance(recipe, Recipe):
        inner = recipe.arguments
    elif isinstance(recipe, dict):
        inner = recipe
    elif type(recipe) in (list, tuple):
        inner = {f"{name}[{i}]": value for i, value in enumerate(recipe)}
    return next(filter(None, (obstacle_to(v, own, n) for n, v in inner.items())), "")


def _own_obstacle(recipe: Any, own: str) -> str:
    """What a file cannot hold of a recipe, the arguments within it aside."""
    if isinstance(recipe, Unrecorded):
        return f"a {recipe.what}, which a file cannot hold"
    if isinstance(recipe, Named):
        if recipe.name not in _FOREIGN and not _of_vilvm(recipe.name):
            return f"{recipe.name}, which is not of vilvm"
    if isinstance(recipe, Recipe):
        if recipe.maker != own and not _of_vilvm(recipe.maker):
            return f"a {recipe.maker}, which is not of vilvm"
    if isinstance(recipe, dict) and not all(map(_is_plain, recipe)):
        return "a dict whose keys are not plain strings"
    return ""


def _is_plain(key: Any) -> bool:
    return isinstance(key, str) and not key.startswith("!")


def pack_recipe(recipe: Recipe, tensors: dict[str, Tensor]) -> Any:
    """A recipe as JSON, its tensors kept separately; see ``training.checkpoint.pack``."""
    return pack(_plain(recipe), tensors, "arguments")


def unpack_recipe(packed: Any, tensors: dict[str, Tensor]) -> Recipe:
    """The inverse of ``pack_recipe``; raises LookupError, TypeError or ValueError."""
    recipe = _recipe(unpack(packed, tensors))
    if not isinstance(recipe, Recipe):
        raise TypeError
    return recipe


def make(recipe: Any, path: Path, own: Any = None) -> Any:
    """The object that a recipe, or an argument within one, describes.

    Arguments:
        recipe: from a file.
        path: of the file.
        own: a maker of the caller, besides those of vilvm.

    Raises:
        CheckpointError: a maker is not of vilvm, or does not take these arguments.
    """
    if isinstance(recipe, Named):
        return _looked_up(recipe.name, path)
    if isinstance(recipe, Recipe):
        return _called(recipe, path, own)
    if isinstance(recipe, list | tuple):
        return type(recipe)(make(v, path, own) for v in recipe)
    if isinstance(recipe, dict):
        return {k: make(v, path, own) for k, v in recipe.items()}
    return recipe


def _called(recipe: Recipe, path: Path, own: Any) -> Any:
    """What the maker of a recipe makes of its arguments."""
    maker = own
    if own is None or recipe.maker != name_of(own):
        maker = _looked_up(recipe.maker, path)
        if not is_rebuildable(maker):
            raise refused(path, f"is altered: {recipe.maker} makes no model")
    arguments = {n: make(v, path, own) for n, v in recipe.arguments.items()}
    try:
        return maker(**arguments)
    except CheckpointError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: {recipe.maker} does not take the arguments in the file ({error}); pass the "
            "model, vilvm.load(path, lvm), or use the vilvm that wrote the file."
        ) from None


def _looked_up(name: str, path: Path) -> Any:
    found = _FOREIGN.get(name) or _of_vilvm(name)
    if found is None:
        raise CheckpointError(
            f"{path}: {name!r:.80} is not a class or function of vilvm that a file may name; pass "
            "the model, vilvm.load(path, lvm)."
        )
    return found


def _of_vilvm(name: str) -> Any:
    """A marked maker, or a public function or class, of a room that a file may name."""
    module, _, attribute = name.rpartition(".")
    room = _ROOMS.fullmatch(module)
    if room is None or not attribute.isidentifier():
        return None
    if room[1] and room[1] not in _gallery():
        return None
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    value = vars(found).get(attribute)
    public = attribute in getattr(found, "__all__", ()) and callable(value)
    return value if public or is_rebuildable(value) else None


def _gallery() -> set[str]:
    """The names of the gallery's modules."""
    path = importlib.import_module("vilvm.models").__path__
    return {module.name for module in pkgutil.iter_modules(path)}


def _plain(value: Any) -> Any:
    """Recipes and names as dicts."""
    if isinstance(value, Recipe):
        arguments = {n: _plain(v) for n, v in value.arguments.items()}
        return {_RECIPE: value.maker, "arguments": arguments}
    if isinstance(value, Named):
        return {_NAME: value.name}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _recipe(value: Any) -> Any:
    """The inverse of ``_plain``."""
    if isinstance(value, list | tuple):
        return type(value)(_recipe(v) for v in value)
    if not isinstance(value, dict):
        return value
    if _NAME in value:
        return Named(_text(value[_NAME]))
    inner = {k: _recipe(v) for k, v in value.items() if k != _RECIPE}
    if _RECIPE in value:
        return Recipe(_text(value[_RECIPE]), dict(inner["arguments"]))
    return inner


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
