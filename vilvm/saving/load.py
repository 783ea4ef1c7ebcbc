"""``load``: the model in a file of ``save``, or in a run folder of ``fit``."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

import vilvm.training.checkpoint as checkpoint
from vilvm._runtime.argument_checks import check_path
from vilvm._runtime.random import preserved_rng
from vilvm._runtime.rebuildable import is_rebuildable, name_of
from vilvm.data._column_names import ColumnNames, set_columns
from vilvm.lvm import ContractError, check_contract
from vilvm.saving._file import read_model, refused
from vilvm.saving._recipes import make, unpack_recipe
from vilvm.saving._state import load_state
from vilvm.training.checkpoint import MALFORMED, CheckpointError, unpack

__all__ = ["MODEL_FILE", "load"]

MODEL_FILE = "model.safetensors"  # in a folder of ``vilvm train``


def load(
    path: Path | str, lvm: Any = None, *, device: torch.device | str | None = None
) -> Any:
    """The model in a file of ``vilvm.save``, or in a run folder of ``fit``.

    Nothing is unpickled. The file is checked as a whole before any of it is loaded: its checksum,
    its description, and the names, shapes and dtypes of all parameters. A class that it names is
    looked up in the gallery and among vilvm's wrappers, priors, guides and networks only.

    The mode is that of `lvm`; a model that ``load`` makes is in evaluation mode. (``fit`` needs
    ``lvm.train()`` if it has dropout or batch normalisation; ``evaluate``, ``posterior`` and all
    else that reports do not depend on the mode.) Parameters have the dtype that they were saved
    with. A model that ``load`` makes has the same frozen parameters.

    Arguments:
        path: of a file of ``vilvm.save``, or a folder of ``vilvm train``, which holds one; or of
            a run folder, which needs `lvm` and gives the parameters of its best record (of its
            last step without validation data).
        lvm: a model of the same class and sizes, which receives the parameters; or its class, if
            that is marked by ``vilvm.lvm.rebuildable``. Not needed if the model is of the gallery.
            A model without parameters yet, such as a ``Pair`` with an autoguide, receives them as
            it makes them, at its first call.
        device: where the model goes; by default where `lvm` is, or the CPU.

    Returns:
        `lvm`, or the model that was made.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or of another version; or it
            cannot say how to make the model, and `lvm` is missing.
        ContractError: `lvm` does not fit the file; the message names what differs, and `lvm` is
            unchanged.

    Examples:
        >>> import pathlib, tempfile, torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.rand(20, 6).round()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = vilvm.save(lvm, pathlib.Path(folder, "vae.safetensors"))
        ...     again = vilvm.load(path)
        >>> means = [vilvm.posterior_mean(m, x)["z"] for m in (lvm, again)]
        >>> torch.equal(*means)
        True
    """
    where = check_path("load: path", path)
    _check_model(lvm)
    if lvm is None and (where / MODEL_FILE).is_file():
        where = where / MODEL_FILE
    if where.is_dir():
        made, state, names = _from_run(where, lvm)
        load_state(made, state, f"the run {where}")
    else:
        header, tensors = read_model(where)
        state = _state(where, header, tensors)
        made: Any = lvm
        if not isinstance(lvm, Module):
            made = _made(where, header, tensors, lvm, state)
        load_state(made, state, str(where))
        if made is not lvm:
            _freeze(made, set(header["frozen"]))
            made.eval()
        names = header["columns"]
    set_columns(made, ColumnNames.from_json(names))
    return made if device is None else made.to(_device(device))


def _check_model(lvm: Any) -> None:
    if lvm is None or (isinstance(lvm, type) and issubclass(lvm, Module)):
        return
    check_contract(lvm)
    if not isinstance(lvm, Module):
        raise ContractError(
            f"load: {type(lvm).__name__} is not a torch.nn.Module, which could hold parameters; "
            "make it one, or wrap its functions as vilvm.Pair(model, guide)."
        )


def _from_run(folder: Path, lvm: Any) -> tuple[Module, dict[str, Any], Any]:
    """The model, the best or last parameters of a run folder, and the names of its columns."""
    found = checkpoint.latest(folder / "checkpoint")
    if found is None:
        raise CheckpointError(
            f"{folder} holds no checkpoint; give a run folder of fit(run_dir=...), or a file of "
            "vilvm.save."
        )
    if not isinstance(lvm, Module):
        raise CheckpointError(
            f"{folder} is a run folder, which does not say how its model is made; pass the model, "
            "vilvm.load(run_dir, lvm)."
        )
    state = checkpoint.load(found)
    try:
        kept = state["model"] if state["best"] is None else state["best"]
        return lvm, dict(kept), state["settings"].get("columns")
    except MALFORMED:
        raise checkpoint.spoiled(found, "it is altered: it holds no model") from None


def _state(
    path: Path, header: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """The state_dict in a file; its tensors are taken out of `tensors`."""
    try:
        state = {name: tensors.pop(name) for name in header["state"]}
        return {**state, **unpack(header["extra"] or {}, {})}
    except MALFORMED:
        raise refused(path, "is altered: its parameters are incomplete") from None


def _made(
    path: Path,
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    kind: Any,
    state: dict[str, Any],
) -> Module:
    """A new model as the file describes it, with the dtypes of the state."""
    if kind is not None and not is_rebuildable(kind):
        raise ContractError(
            f"load: {kind.__name__} does not declare its arguments; pass a model, "
            f"{kind.__name__}(...), or mark the class by vilvm.lvm.rebuildable."
        )
    if header["recipe"] is None:
        raise CheckpointError(
            f"{path} does not say how its model ({header['class']:.80}) is made, because "
            f"{header['obstacle']:.200}; pass the model, vilvm.load(path, lvm)."
        )
    try:
        recipe = unpack_recipe(header["recipe"], tensors)
    except MALFORMED:
        raise refused(path, "is altered: its recipe is not one") from None
    if kind is not None and recipe.maker != name_of(kind):
        raise ContractError(
            f"load: {path} holds a {recipe.maker:.80}, and not a {name_of(kind)}; pass that class."
        )
    with preserved_rng("cpu"):
        made = make(recipe, path, kind)
    if not isinstance(made, Module):
        raise refused(path, "is altered: its recipe makes no model")
    check_contract(made)
    _set_dtypes(made, state)
    return made


def _set_dtypes(lvm: Module, state: dict[str, Any]) -> None:
    """Gives parameters and buffers the dtype that they were saved with."""
    for name, own in [*lvm.named_parameters(), *lvm.named_buffers()]:
        kept = state.get(name)
        if isinstance(kept, Tensor) and kept.dtype != own.dtype:
            own.data = own.data.to(kept.dtype)


def _freeze(lvm: Module, frozen: set[str]) -> None:
    for name, parameter in lvm.named_parameters():
        parameter.requires_grad_(name not in frozen and parameter.is_floating_point())


def _device(device: torch.device | str) -> torch.device:
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"load: unknown device {device!r}; choose 'cpu' or 'cuda'."
        ) from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"load: device {device!r} was asked for, and torch finds no GPU here; choose 'cpu'."
        )
    return where
