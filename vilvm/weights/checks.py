"""Holding a pair to the contract: what must be true of its traces, each fault with one sentence."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm.data.data import Data
from vilvm.data.streamed import StreamedTensor
from vilvm.data.tensors import tensors_of
from vilvm.lvm import ContractError
from vilvm.weights._traces import Sites

__all__ = [
    "check_batch",
    "check_full_size",
    "check_latents",
    "check_number",
    "check_plates",
    "check_shape",
    "enumerable",
]


def check_latents(lvm: object, model: Sites, guide: Sites) -> None:
    """The guide draws the model's latents, each of one shape, and the model observes something."""
    name_of = type(lvm).__name__
    latents = [n for n, s in model.items() if not s["is_observed"]]
    for name in latents:
        if name not in guide and not enumerable(model[name]):
            raise ContractError(
                f"{name_of}: the model samples {name!r} and the guide does not. If it is a "
                f"latent, sample {name!r} in the guide too; "
                f"if it is the data, observe it: pyro.sample({name!r}, ..., obs=batch)."
            )
    for name, site in guide.items():
        if name not in model and not site["infer"].get("is_auxiliary"):
            raise ContractError(
                f"{name_of}: the guide samples {name!r} and the model does not. Sample {name!r} "
                "in the model, remove it from the guide, or, if "
                "latents are a one-to-one function of it, mark it infer={'is_auxiliary': True}."
            )
        if name in model and model[name]["is_observed"] and not site["is_observed"]:
            raise ContractError(
                f"{name_of}: the guide samples {name!r}, which the model observes; remove it from "
                "the guide."
            )
    if len(latents) == len(model):
        raise ContractError(
            f"{name_of}: the model observes nothing; give one pyro.sample of it obs=batch."
        )
    for name in [n for n in latents if n in guide]:
        shapes = [tuple(model[name]["fn"].shape()), tuple(guide[name]["value"].shape)]
        events = [s[name]["fn"].event_dim for s in (model, guide)]
        if events[0] != events[1]:
            raise ContractError(
                f"{name_of}: latent {name!r} has {events[0]} event dimensions in the model and "
                f"{events[1]} in the guide; "
                "give both the same .to_event(...)."
            )
        if _significant(shapes[0]) != _significant(shapes[1]):
            raise ContractError(
                f"{name_of}: latent {name!r} has shape {shapes[0]} in the model and {shapes[1]} "
                "in the guide; make them equal."
            )


def check_full_size(who: str, layout: Any, num_data: int, *also: int) -> None:
    """Raises ContractError if the plate over the data says that there are more, or fewer, than the
    `num_data` that are known to be all.

    Its likelihood would be multiplied by the wrong number. A plate of the batch's own size scales
    nothing.
    """
    if layout.full_size not in (layout.num_data, num_data, *also):
        raise ContractError(
            f"{who}: plate {layout.data_plate!r} is declared for {layout.full_size} data, and "
            f"these are {num_data}: write "
            f"pyro.plate({layout.data_plate!r}, {num_data}, subsample=batch), or, if they are not "
            f"scaled up, pyro.plate({layout.data_plate!r}, len(batch))."
        )


def check_plates(model_trace: Any, guide_trace: Any) -> None:
    """A plate takes its indices from the guide's plate of that name, and would silently rescale if
    it were of another size.
    """
    for name, site in model_trace.nodes.items():
        other = guide_trace.nodes.get(name)
        if (
            site["type"] == "sample"
            and site_is_subsample(site)
            and other is not None
            and site["fn"].size != other["fn"].size
        ):
            raise ContractError(
                f"Plate {name!r} has size {site['fn'].size} in the model and {other['fn'].size} "
                "in the guide; use len(batch) in both; "
                "if the guide has parameters of single data, as an autoguide over local latents "
                "has, pass the data it was fitted to, all at once."
            )


def check_shape(part: str, site: Any, value: Tensor) -> None:
    """A log-density may have a dimension larger than one only where a plate declares it, or right
    of a plate, where Pyro allows it.
    """
    sizes = {f.dim: f.size for f in site["cond_indep_stack"] if f.vectorized}
    for dim in range(-value.dim(), 0):
        size, declared = value.shape[dim], sizes.get(dim)
        if size != 1 and declared is None and dim < min(sizes, default=0):
            raise ContractError(
                f"The {part}'s site {site['name']!r} has a log-density of shape "
                f"{tuple(value.shape)}, and no plate declares its "
                f"dimension {dim} of size {size}: put the site in a pyro.plate of that size, or "
                "make the dimension part of one "
                "datum with .to_event(1)."
            )
        if declared is not None and declared > 0 and size not in (1, declared):
            raise ContractError(
                f"The {part}'s site {site['name']!r} has size {size} where its plate says "
                f"{declared} (dimension {dim}); "
                "use len(batch) as the size of the plate."
            )


def _significant(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones on its left."""
    return shape[next((i for i, n in enumerate(shape) if n != 1), len(shape)) :]


def check_batch(batch: Any) -> None:
    """Raises ContractError if a batch is not what a model is called with."""
    if isinstance(batch, Data):
        raise ContractError(
            "Got a vilvm.Data in place of a batch; pass data.fixed().x, the tensors themselves."
        )
    if isinstance(batch, str | bytes | set | Iterator):
        raise ContractError(
            f"Got a {type(batch).__name__} in place of a batch; pass a tensor, or a tuple or dict "
            "of tensors."
        )
    arrays = _arrays_of(batch)
    if any(np.ma.isMaskedArray(array) for array in arrays):
        raise ContractError(
            "The batch holds a NumPy masked array, whose mask no tensor keeps; pass tensors, and "
            "the mask to vilvm.wrappers.partly_observed.partly_observed, "
            "poutine.mask or .mask(...) of the distribution."
        )
    if arrays:
        raise ContractError("Got a numpy array in place of a batch; pass torch.from_numpy(...).")
    if any(
        isinstance(t, Tensor) and (t.layout is not torch.strided or t.device.type == "meta")
        for t in tensors_of(batch)
    ):
        raise ContractError(
            "The batch holds a sparse or meta tensor; pass a dense one (.to_dense())."
        )
    if any(isinstance(t, Tensor) and t.is_complex() for t in tensors_of(batch)):
        raise ContractError(
            "The batch holds complex numbers; pass their real and imaginary parts, "
            "torch.view_as_real(x)."
        )
    if any(isinstance(t, StreamedTensor) for t in tensors_of(batch)):
        raise ContractError(
            "Got data that stay on disk in place of a batch; read some of them, "
            "data.subset(slice(0, 1000)), or data.loaded()."
        )
    if any(t.dim() and not len(t) for t in tensors_of(batch)):
        raise ContractError("The batch is empty; pass at least one datum.")


def _arrays_of(batch: Any) -> list[np.ndarray]:
    """The NumPy arrays in a batch."""
    if isinstance(batch, np.ndarray):
        return [batch]
    parts = (
        batch.values()
        if isinstance(batch, Mapping)
        else batch
        if isinstance(batch, list | tuple)
        else ()
    )
    return [array for part in parts for array in _arrays_of(part)]


def enumerable(site: Any) -> bool:
    """Whether a site is marked for parallel enumeration."""
    return site["infer"].get("enumerate") == "parallel"
