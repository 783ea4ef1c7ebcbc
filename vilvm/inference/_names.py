"""The user's names of latents, in what ``infer`` hands over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vilvm.data.data import Data
from vilvm.diagnostics._coordinates import NAMELESS, Coordinates
from vilvm.diagnostics._names import names_of_pair
from vilvm.inference._preparation import target_of
from vilvm.inference.posterior import Posterior

__all__ = ["named", "names_of"]


def names_of(
    model: Callable[[Any], Any],
    data: Data,
    coords: Mapping[str, Sequence[Any]] | None,
    dims: Mapping[str, Sequence[str]] | None,
) -> Coordinates:
    """The names of the latents, checked before the work begins.

    Raises:
        ValueError: a name does not fit.
    """
    if not (coords or dims) and data.index is None:
        return NAMELESS
    joint = target_of(model, data.x).joint
    pair = joint.lvm, joint.batch, joint.layout
    return names_of_pair("infer", pair, data, coords, dims, jointly=True)


def named(posterior: Posterior, names: Coordinates) -> Posterior:
    """The posterior with these names in its table and findings."""
    findings = [
        replace(f, verdict=names.renamed(f.verdict)) for f in posterior.findings
    ]
    return replace(posterior, names=names, findings=tuple(findings))
