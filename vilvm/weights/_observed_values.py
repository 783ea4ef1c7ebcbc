"""The values that a model observes: where they are in a batch, and which a mask hides."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.random import preserved_rng
from vilvm.data.data import Data
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._sites import (
    Sites,
    family,
    mask_tensor,
    observed_of,
    sites_of,
    to_own_dims,
)
from vilvm.weights._traces import run
from vilvm.weights.layout import Layout

__all__ = [
    "put_in",
    "run_model_alone",
    "scored_entries",
    "sites_of_model",
    "undrawable",
    "visible_latents",
]


def run_model_alone(
    lvm: LatentVariableModel, batch: Any, model: Callable[[Any], Any] | None = None
) -> Sites:
    """The sites of the model, or of another one with its parameters, without the guide."""
    with (
        torch.no_grad(),
        module_parameters(lvm),
        evaluation_mode(lvm),
        preserved_rng(Data(batch).device),
    ):
        return sites_of(run(model or lvm.model, "model", batch))


def sites_of_model(lvm: LatentVariableModel, batch: Any) -> Sites:
    """The sites of the model, at one draw of the guide."""
    with (
        torch.no_grad(),
        module_parameters(lvm),
        evaluation_mode(lvm),
        preserved_rng(Data(batch).device),
    ):
        return sites_of(run(lvm.model, "model", batch, run(lvm.guide, "guide", batch)))


def undrawable(lvm: LatentVariableModel, batch: Any) -> tuple[str, ...]:
    """The observed sites whose likelihood cannot be drawn from, in the model's order.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.

    Returns:
        Their names.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.simulation import undrawable
        >>> undrawable(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6))
        ()
    """
    with torch.no_grad(), preserved_rng(Data(batch).device):
        observed = observed_of(sites_of_model(lvm, batch))
        data = {
            name: site
            for name, site in observed.items()
            if family(site["fn"]) != "Unit"
        }
        return tuple(name for name, site in data.items() if not _can_draw(site["fn"]))


def _can_draw(fn: Any) -> bool:
    try:
        fn.sample()
    except Exception:  # a user's distribution without sample may raise anything
        return False
    return True


def visible_latents(
    lvm: LatentVariableModel, batch: Any, layout: Layout
) -> dict[str, Tensor]:
    """The entries of a latent that the model's mask leaves in the joint density.

    A masked entry has no prior, and so no posterior to compare with.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        layout: the layout of this batch.

    Returns:
        By latent with masked entries, Booleans of the shape of one draw, (*plates, *event).

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import find_layout
        >>> from vilvm.weights.simulation import visible_latents
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> visible_latents(lvm, x, find_layout(lvm, x))
        {}
    """
    sites, found = sites_of_model(lvm, batch), {}
    for name in layout.latents:
        scored = scored_entries(sites[name])
        if not bool(scored.all()):
            found[name] = to_own_dims(scored, sites[name], 1, layout.nesting)[0]
    return found


def scored_entries(site: Any) -> Tensor:
    """The entries of a site's value that no mask hides; Booleans of the value's shape."""
    shape = torch.broadcast_shapes(site["value"].shape, site["fn"].shape())
    mask = mask_tensor(site)
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=site["value"].device)
    return mask.bool().expand(shape)


def put_in(lvm: LatentVariableModel, batch: Any, values: Mapping[str, Tensor]) -> Any:
    """`batch` with other values of the observed sites; entries that a mask hides stay.

    A site may observe a tensor of the batch or a view of one, such as a column or the transpose.

    Arguments:
        lvm: the model and guide; the guide is not run.
        batch: what the model is called with.
        values: by observed site, of the shape in the batch up to dimensions of size one; other
            names are ignored.

    Returns:
        A batch of the same structure.

    Raises:
        ContractError: a site observes a tensor that is neither in the batch nor a view of one that
            is; or a value has another shape.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.simulation import put_in
        >>> lvm = VAE(data_dim=6, latent_dim=2)
        >>> put_in(lvm, torch.zeros(4, 6), {"x": torch.ones(4, 6)}).sum()
        tensor(24.)
    """
    tensors = tensors_of(batch)
    new = list(tensors)
    for name, site in observed_of(run_model_alone(lvm, batch)).items():
        if name not in values:
            continue
        old, scored = site["value"], scored_entries(site).flatten()
        _check_same_shape(name, values[name], old)
        i, entries = _find_in(tensors, name, old)
        value = values[name].to(old.dtype).flatten()
        flat = new[i].flatten().index_put((entries[scored],), value[scored])
        new[i] = flat.reshape(tensors[i].shape)
    replacements = iter(new)
    return map_tensors(lambda _: next(replacements), batch)


def _check_same_shape(name: str, value: Tensor, old: Tensor) -> None:
    if [n for n in value.shape if n > 1] != [n for n in old.shape if n > 1]:
        raise ContractError(
            f"Site {name!r} observes a tensor of shape {tuple(old.shape)} and draws one of shape "
            f"{tuple(value.shape)}, which cannot replace it: give each of its plates data of its "
            "own."
        )


def _find_in(tensors: list[Tensor], name: str, value: Tensor) -> tuple[int, Tensor]:
    """The index of the tensor that holds the values of a site, and their flat indices in it."""
    entries = [_entries_of(value, tensor) for tensor in tensors]
    found = [(i, at.flatten()) for i, at in enumerate(entries) if at is not None]
    if len(found) == 1:
        return found[0]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    raise ContractError(
        f"Site {name!r} observes a tensor of shape {tuple(value.shape)}, which is neither one of "
        f"the batch's tensors, {shapes}, nor a view of one, so drawn data cannot replace it: pass "
        "it in the batch and observe it unchanged."
    )


def _entries_of(part: Tensor, whole: Tensor) -> Tensor | None:
    """The flat indices of the entries of `part` in `whole`, in the shape of `part`.

    None unless `part` is `whole` or a view of some of it.
    """
    storage = whole.untyped_storage()
    if (
        part.dtype != whole.dtype
        or part.untyped_storage().data_ptr() != storage.data_ptr()
    ):
        return None
    indices = torch.full(
        (storage.nbytes() // whole.element_size(),), -1, device=whole.device
    )
    if whole.numel():
        indices.as_strided(whole.shape, whole.stride(), whole.storage_offset()).copy_(
            torch.arange(whole.numel(), device=whole.device).reshape(whole.shape)
        )
    found = indices.as_strided(part.shape, part.stride(), part.storage_offset())
    if bool((found >= 0).all()) and len(found.unique()) == found.numel():
        return found
    return None
