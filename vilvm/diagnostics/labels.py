"""Latents that are labels: what is known of one is the probability of each of its values, not a mean or a standard deviation.

A label c with values v₁ … v_K, K up to twenty, is measured by its indicators 1[c = v_k], whose means are probabilities; one of two values, 0 and 1, by itself.
What counts (a Poisson, or a Binomial of many trials) is measured as a number.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vilvm.diagnostics.simulated import names_of
from vilvm.lvm import LatentVariableModel
from vilvm.weights import Layout
from vilvm.weights.simulated import sites_of_model
from vilvm.weights.traces import plain

__all__ = ["discrete_latents", "indicators", "label_names"]

_MOST = 20  # values of a label


def discrete_latents(lvm: LatentVariableModel, batch: Any, plan: Layout) -> dict[str, Tensor | None]:
    """The latents of discrete support, with the values that a label has, shape (K,), or None for a number that counts."""
    sites = sites_of_model(lvm, batch)
    return {n: _values(sites[n]["fn"]) for n in plan.latents if getattr(sites[n]["fn"].support, "is_discrete", False)}


def _values(fn: Any) -> Tensor | None:
    fn = plain(fn)
    if not getattr(fn, "has_enumerate_support", False):
        return None
    try:
        values = fn.enumerate_support(expand=False)
    except NotImplementedError:  # a Binomial whose totals differ
        return None
    if fn.event_shape:  # one-hot: each component is an indicator
        return torch.tensor([0.0, 1.0])
    return values.flatten() if values.numel() <= _MOST else None


def indicators(latents: Mapping[str, Tensor], labels: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The latents, each label of more than two values replaced by its indicators, along a dimension added on the right."""
    return {n: _of(v, values) if (values := labels.get(n)) is not None else v for n, v in latents.items()}


def _of(value: Tensor, values: Tensor) -> Tensor:
    return value if _is_binary(values) else (value.unsqueeze(-1) == values.to(value)).to(torch.get_default_dtype())


def label_names(latents: Mapping[str, Tensor], labels: Mapping[str, Tensor | None], plan: Layout) -> tuple[tuple[str, ...], Tensor]:
    """What the components of ``indicators`` are called, such as "c[3]=2", and which of them are probabilities, shape (K,)."""
    names, probable = [], []
    for latent, value in latents.items():
        own, values = names_of({latent: value}, plan), labels.get(latent)
        if values is not None and not _is_binary(values):
            own = tuple(f"{name}={v:g}" for name in own for v in values.tolist())
        names += own
        probable += [values is not None] * len(own)
    return tuple(names), torch.tensor(probable, dtype=torch.bool)


def _is_binary(values: Tensor) -> bool:
    return values.tolist() == [0, 1]
