"""Checks of the contract of a pair on its traces; each error message is one sentence."""

from typing import Any

from torch import Tensor

from vilvm.lvm import ContractError
from vilvm.weights._sites import Sites, latents_of, subsamples_of

__all__ = ["check_latents", "check_plates", "check_shape", "enumerable"]


def enumerable(site: Any) -> bool:
    """Whether a site is marked for parallel enumeration."""
    return site["infer"].get("enumerate") == "parallel"


def check_latents(lvm: object, model: Sites, guide: Sites) -> None:
    """Checks that the guide draws the model's latents, and that the model observes something.

    Arguments:
        lvm: named in the error.
        model: the sites of a run of the model.
        guide: the sites of a run of the guide.

    Raises:
        ContractError: the two draw different latents, or a latent in different shapes; or the
            model observes nothing.
    """
    who, latents = type(lvm).__name__, latents_of(model)
    for name, site in latents.items():
        if name not in guide and not enumerable(site):
            raise ContractError(
                f"{who}: the model samples {name!r} and the guide does not. If it is a latent, "
                f"sample {name!r} in the guide too; if it is the data, observe it: "
                f"pyro.sample({name!r}, ..., obs=batch)."
            )
    for name, site in guide.items():
        _check_guide_site(who, name, site, model)
    if len(latents) == len(model):
        raise ContractError(
            f"{who}: the model observes nothing; give one pyro.sample of it obs=batch."
        )
    for name in latents:
        if name in guide:
            _check_same_shape(who, name, model[name], guide[name])


def _check_guide_site(who: str, name: str, site: Any, model: Sites) -> None:
    if name not in model and not site["infer"].get("is_auxiliary"):
        raise ContractError(
            f"{who}: the guide samples {name!r} and the model does not. Sample {name!r} in the "
            "model, remove it from the guide, or, if latents are a one-to-one function of it, "
            "mark it infer={'is_auxiliary': True}."
        )
    if name in model and model[name]["is_observed"] and not site["is_observed"]:
        raise ContractError(
            f"{who}: the guide samples {name!r}, which the model observes; remove it from the "
            "guide."
        )


def _check_same_shape(who: str, name: str, model: Any, guide: Any) -> None:
    if model["fn"].event_dim != guide["fn"].event_dim:
        raise ContractError(
            f"{who}: latent {name!r} has {model['fn'].event_dim} event dimensions in the model "
            f"and {guide['fn'].event_dim} in the guide; give both the same .to_event(...)."
        )
    shapes = tuple(model["fn"].shape()), tuple(guide["value"].shape)
    if _without_leading_ones(shapes[0]) != _without_leading_ones(shapes[1]):
        raise ContractError(
            f"{who}: latent {name!r} has shape {shapes[0]} in the model and {shapes[1]} in the "
            "guide; make them equal."
        )


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    start = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return shape[start:]


def check_plates(model_trace: Any, guide_trace: Any) -> None:
    """Checks that plates of the same name have the same size in model and guide.

    The model's plate takes the indices of the guide's plate, so another size would scale the
    model's density wrongly.

    Arguments:
        model_trace, guide_trace: of a run of the pair.

    Raises:
        ContractError: a plate has two sizes.
    """
    for name, site in subsamples_of(model_trace).items():
        other = guide_trace.nodes.get(name)
        if other is not None and site["fn"].size != other["fn"].size:
            raise ContractError(
                f"Plate {name!r} has size {site['fn'].size} in the model and {other['fn'].size} "
                "in the guide; use len(batch) in both. If the guide has parameters per datum (an "
                "autoguide over local latents), pass the whole data set that it was fitted to."
            )


def check_shape(part: str, site: Any, value: Tensor) -> None:
    """Checks that plates declare the dimensions of a log-density that are larger than one.

    Pyro also allows undeclared dimensions right of a plate.

    Arguments:
        part: "model" or "guide".
        site: a site of its trace.
        value: the log-density of the site.

    Raises:
        ContractError: a dimension is undeclared, or has another size than its plate.
    """
    sizes = {f.dim: f.size for f in site["cond_indep_stack"] if f.vectorized}
    for dim in range(-value.dim(), 0):
        size, declared = value.shape[dim], sizes.get(dim)
        if declared is None and size != 1 and dim < min(sizes, default=0):
            raise ContractError(
                f"The {part}'s site {site['name']!r} has a log-density of shape "
                f"{tuple(value.shape)}, and no plate declares its dimension {dim} of size {size}: "
                "put the site in a pyro.plate of that size, or make the dimension part of one "
                "datum with .to_event(1)."
            )
        if declared is not None and declared > 0 and size not in (1, declared):
            raise ContractError(
                f"The {part}'s site {site['name']!r} has size {size} where its plate says "
                f"{declared} (dimension {dim}); use len(batch) as the size of the plate."
            )
