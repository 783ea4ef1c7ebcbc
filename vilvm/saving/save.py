"""``save``: a model in one file."""

from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module

from vilvm._runtime.argument_checks import check_path
from vilvm._runtime.rebuildable import name_of, recipe_of
from vilvm.data._column_names import training_columns
from vilvm.data.data import as_data
from vilvm.lvm import ContractError, LatentVariableModel, check_contract
from vilvm.saving._file import write_model
from vilvm.saving._recipes import obstacle_to, pack_recipe
from vilvm.saving._state import check_complete, state_of
from vilvm.training.checkpoint import CheckpointError, pack

__all__ = ["save"]

_PACKAGES = {"vilvm": "vilvm", "torch": "torch", "pyro": "pyro-ppl"}


def save(lvm: LatentVariableModel, path: Path | str, *, data: Any = None) -> Path:
    """Writes a model in one file, which ``vilvm.load`` reads in any process, on any device.

    The file is written atomically and replaces an older one. It holds all parameters and buffers
    (also those of ``pyro.param`` statements and autoguides), which of them are frozen, the
    constructor arguments if the class declares them (``vilvm.lvm.rebuildable``; all classes of the
    gallery and all wrappers and priors do), the names of the columns of its training data, if they
    had some, and the versions of vilvm, torch and Pyro. Functions are not in it, nor the
    optimizer: a run folder of ``fit`` holds that.

    Within ``vilvm.distributed()``, call it on one rank.

    Arguments:
        lvm: a ``torch.nn.Module`` with ``model`` and ``guide``, or a ``Pair``.
        path: of the file, by custom ``NAME.safetensors``.
        data: the training data, whose name, size and fingerprint are recorded.

    Returns:
        The path.

    Raises:
        ContractError: `lvm` is no module, or an autoguide of it has no parameters yet.
        CheckpointError: its state holds something that is neither a tensor nor plain data.
        OSError: the file cannot be written.

    Examples:
        >>> import pathlib, tempfile, torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> lvm, x = PPCA(data_dim=6, latent_dim=2), torch.randn(20, 6)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = vilvm.save(lvm, pathlib.Path(folder, "ppca.safetensors"), data=x)
        ...     again = vilvm.load(path)
        >>> type(again).__name__, torch.equal(again.W, lvm.W)
        ('PPCA', True)
    """
    check_contract(lvm)
    if not isinstance(lvm, Module):
        raise ContractError(
            f"save: {type(lvm).__name__} is not a torch.nn.Module; make it one, or wrap its "
            "functions as vilvm.Pair(model, guide)."
        )
    where = check_path("save: path", path)
    if where.is_dir():
        raise ValueError(f"save: {where} is a folder; give the path of a file in it.")
    state = state_of(lvm)
    check_complete(lvm, state)
    tensors = {
        n: v.detach().cpu().contiguous().clone()
        for n, v in state.items()
        if isinstance(v, Tensor)
    }
    columns = training_columns(lvm)
    description = {
        "class": name_of(type(lvm)),
        **_recipe(lvm, tensors),
        "state": sorted(tensors.keys() & state.keys()),
        "extra": _extra(state),
        "frozen": sorted(n for n, p in lvm.named_parameters() if not p.requires_grad),
        "versions": {n: version(package) for n, package in _PACKAGES.items()},
        "columns": columns and columns.to_json(),
        "data": None if data is None else _record(data),
        "saved": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    write_model(where, description, tensors)
    return where


def _recipe(lvm: Module, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The recipe of a model, or why there is none."""
    recipe = recipe_of(lvm)
    if recipe is None:
        return {"recipe": None, "obstacle": "its class does not declare its arguments"}
    obstacle = obstacle_to(recipe, name_of(type(lvm)))
    if obstacle:
        return {"recipe": None, "obstacle": obstacle}
    return {"recipe": pack_recipe(recipe, tensors), "obstacle": ""}


def _extra(state: dict[str, Any]) -> Any:
    """The entries of a state_dict that are no tensors (``get_extra_state``), as JSON."""
    extra = {n: v for n, v in state.items() if not isinstance(v, Tensor)}
    inner: dict[str, Tensor] = {}
    packed = pack(extra, inner)
    if inner:
        raise CheckpointError(
            f"save: {min(inner)!r} of the extra state is a tensor in a collection; register it as "
            "a buffer."
        )
    return packed


def _record(data: Any) -> dict[str, Any]:
    checked = as_data(data)
    return {**checked.protocol(), "fingerprint": checked.fingerprint()}
