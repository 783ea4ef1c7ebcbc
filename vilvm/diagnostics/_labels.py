"""Discrete latents: a label is described by the probability of each of its values.

A label c with values v₁ … v_K, K at most 20, is described by its indicators 1[c = v_k], whose
means are probabilities; a label with values 0 and 1 is its own indicator. Labels may be right
separately and wrong jointly, for example if they are dependent in the posterior and independent in
the guide. So for few labels, the joint probabilities of the values of two labels are computed too.
A count (a Poisson, or a Binomial of many trials) is treated as a number.
"""

from collections.abc import Iterator, Mapping
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

_MOST = 20  # values of a label, or of a pair of labels
_PAIRED = 5  # most labels of a datum whose pairs are compared


def discrete_latents(
    lvm: LatentVariableModel, batch: Any, layout: Layout
) -> dict[str, Tensor | None]:
    """The latents of discrete support: a label's values, shape (K,), or None for a count."""
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
    except NotImplementedError:  # a Binomial with several totals
        return None
    if fn.event_shape:  # one-hot: each component is an indicator
        return torch.tensor([0.0, 1.0])
    if values.numel() > _MOST:
        return None
    return values.flatten()


def indicators(
    latents: Mapping[str, Tensor], labels: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """The latents; a label of more than two values becomes its indicators, in a new last axis."""
    return {n: _indicator(v, labels.get(n)) for n, v in latents.items()}


def _indicator(value: Tensor, values: Tensor | None) -> Tensor:
    if values is None or _is_binary(values):
        return value
    return (value.unsqueeze(-1) == values.to(value)).to(torch.get_default_dtype())


def label_names(
    latents: Mapping[str, Tensor], labels: Mapping[str, Tensor | None], layout: Layout
) -> tuple[tuple[str, ...], Tensor]:
    """Names of the components of ``indicators``, such as "c[3]=2", and a mask of probabilities.

    The mask has shape (K,).
    """
    names, is_probability = [], []
    for latent, value in latents.items():
        own, values = names_of({latent: value}, layout), labels.get(latent)
        if values is not None and not _is_binary(values):
            own = tuple(f"{name}={v:g}" for name in own for v in values.tolist())
        names += own
        is_probability += [values is not None] * len(own)
    return tuple(names), torch.tensor(is_probability, dtype=torch.bool)


def pairs(
    latents: Mapping[str, Tensor], labels: Mapping[str, Tensor | None], layout: Layout
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Indicators that two labels jointly have given values, and names such as "a=1, b=2".

    The first value of each label is left out: its probabilities follow from the others'.

    Returns:
        Indicators, shape (S, num_data, number of pairs), as from ``components``, and their names;
        None and no names for fewer than two labels or too many.
    """
    known = {n: v for n, v in latents.items() if labels.get(n) is not None}
    each = [
        (name, labels[n]) for n, v in known.items() for name in names_of({n: v}, layout)
    ]
    if not 2 <= len(each) <= _PAIRED:
        return None, ()
    columns, found, names = components(known, layout), [], []
    for i, j, v, w in _joint_values([values for _, values in each]):
        found.append((columns[..., i] == v) & (columns[..., j] == w))
        names.append(f"{each[i][0]}={v:g}, {each[j][0]}={w:g}")
    if not found:
        return None, ()
    return torch.stack(found, -1).double(), tuple(names)


def _joint_values(
    labels: list[Tensor | None],
) -> Iterator[tuple[int, int, float, float]]:
    """The indices of two labels and a value of each, without the first values."""
    for (i, own), (j, other) in combinations(enumerate(labels), 2):
        if own is None or other is None or len(own) * len(other) > _MOST:
            continue
        for v, w in product(own[1:].tolist(), other[1:].tolist()):
            yield i, j, v, w


def _is_binary(values: Tensor) -> bool:
    return values.tolist() == [0, 1]
