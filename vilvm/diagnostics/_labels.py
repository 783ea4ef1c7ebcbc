"""Latents that are labels: what is known of one is the probability of each of its values, not a
mean or a standard deviation.

A label c with values v₁ … v_K, K up to twenty, is measured by its indicators 1[c = v_k], whose
means are probabilities; one of two values, 0 and 1, by itself. Labels may be right one by one and
wrong together, as independent ones are where the posterior ties them: of few, the probability that
two have values v and w at once is measured too. What counts (a Poisson, or a Binomial of many
trials) is measured as a number.
"""

from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from vilvm.diagnostics._components import components, names_of
from vilvm.lvm import LatentVariableModel
from vilvm.weights import Layout
from vilvm.weights._observed_values import sites_of_model
from vilvm.weights._sites import plain

__all__ = ["discrete_latents", "indicators", "label_names", "pairs"]

_MOST = 20  # values of a label, and of two at once
_PAIRED = 5  # labels of a datum of which two at once are looked at


def discrete_latents(
    lvm: LatentVariableModel, batch: Any, layout: Layout
) -> dict[str, Tensor | None]:
    """The latents of discrete support, with the values that a label has, shape (K,), or None for a
    number that counts.
    """
    sites = sites_of_model(lvm, batch)
    return {
        n: _values(sites[n]["fn"])
        for n in layout.latents
        if getattr(sites[n]["fn"].support, "is_discrete", False)
    }


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


def indicators(
    latents: Mapping[str, Tensor], labels: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """The latents, each label of more than two values replaced by its indicators, along a
    dimension added on the right.
    """
    return {
        n: _of(v, values) if (values := labels.get(n)) is not None else v
        for n, v in latents.items()
    }


def _of(value: Tensor, values: Tensor) -> Tensor:
    return (
        value
        if _is_binary(values)
        else (value.unsqueeze(-1) == values.to(value)).to(torch.get_default_dtype())
    )


def label_names(
    latents: Mapping[str, Tensor], labels: Mapping[str, Tensor | None], layout: Layout
) -> tuple[tuple[str, ...], Tensor]:
    """What the components of ``indicators`` are called, such as "c[3]=2", and which of them are
    probabilities, shape (K,).
    """
    names, probable = [], []
    for latent, value in latents.items():
        own, values = names_of({latent: value}, layout), labels.get(latent)
        if values is not None and not _is_binary(values):
            own = tuple(f"{name}={v:g}" for name in own for v in values.tolist())
        names += own
        probable += [values is not None] * len(own)
    return tuple(names), torch.tensor(probable, dtype=torch.bool)


def pairs(
    latents: Mapping[str, Tensor], labels: Mapping[str, Tensor | None], layout: Layout
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Indicators of the values that two labels have at once, and what they are called, such as
    "a=1, b=2".

    Without the first value of each, whose probabilities follow from the others'.

    Returns:
        Shape (S, num_data, number of pairs), as ``components`` has it; None, and no names, of
        fewer than two labels or too many.
    """
    known = {n: v for n, v in latents.items() if labels.get(n) is not None}
    each = [(name, labels[n]) for n, v in known.items() for name in names_of({n: v}, layout)]
    if not 2 <= len(each) <= _PAIRED:
        return None, ()
    columns, found, names = components(known, layout), [], []
    for (i, (first, own)), (j, (second, other)) in combinations(enumerate(each), 2):
        if own is None or other is None or len(own) * len(other) > _MOST:
            continue
        for v, w in product(own[1:].tolist(), other[1:].tolist()):
            found.append((columns[..., i] == v) & (columns[..., j] == w))
            names.append(f"{first}={v:g}, {second}={w:g}")
    return (torch.stack(found, -1).double(), tuple(names)) if found else (None, ())


def _is_binary(values: Tensor) -> bool:
    return values.tolist() == [0, 1]
