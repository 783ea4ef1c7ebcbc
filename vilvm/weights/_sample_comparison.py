"""A comparison of many samples with single-sample runs at the same latents."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from vilvm.data.tensors import tensors_of
from vilvm.weights._passes import BoundPass, Values, leaves

__all__ = ["SingleRun", "first_difference"]

# relative to the mean size of a term; float32 sums in another order differ by some 1e-6
_TOLERANCE = 1e-4
# the same, if data and latents are float64; a network inside may still be float32
_TOLERANCE_OF_DOUBLES = 1e-6
# a relative change of the latents by a few roundings; its effect on a term is not a difference
_ROUNDING = 2.0**-21
_MOST_SLACK = 1e-2  # relative; a term that roundings change by more counts as different

_NAMES = {
    "log_likelihoods": "log-likelihood",
    "log_priors": "log-prior",
    "log_guides": "log-guide density",
    "densities": "log-density",
    "latents": "value",
    "drawn": "value",
}


class SingleRun(NamedTuple):
    """A single-sample run.

    Arguments:
        given: the values to which sites were set.
        values: its results.
    """

    given: dict[str, Tensor]
    values: Values


def first_difference(
    found: Values, indices: Iterable[int], runs: list[SingleRun], bound: BoundPass
) -> str | None:
    """The first value that differs from its single run, as text, or None.

    Arguments:
        found: the values of many samples.
        indices: indices of the samples that are compared.
        runs: the single run of each of these samples.
        bound: the pass.
    """
    tolerance = _tolerance(bound.batch, runs[0].given)
    for index, run in zip(indices, runs, strict=True):
        for reason in _differences(found, index, run, bound, tolerance):
            return reason
    return None


def _tolerance(batch: Any, given: dict[str, Tensor]) -> float:
    tensors = [
        t for t in (*tensors_of(batch), *given.values()) if t.is_floating_point()
    ]
    if tensors and all(t.dtype == torch.float64 for t in tensors):
        return _TOLERANCE_OF_DOUBLES
    return _TOLERANCE


def _differences(
    found: Values, index: int, run: SingleRun, bound: BoundPass, tolerance: float
) -> Iterator[str]:
    expected = leaves(run.values)
    extra = {leaf[:2] for leaf in leaves(found)} - {leaf[:2] for leaf in expected}
    if extra:
        kind, site = min(extra)
        yield (
            f"at several samples site {site!r} has a {_NAMES.get(kind, kind)}, and none in a "
            "single run"
        )
    for kind, site, single in expected:
        what = f"the {_NAMES.get(kind, kind)} of site {site!r}"
        value = found.get(kind, {}).get(site)
        if value is None:
            yield f"{what} has shape None, and {tuple(single.shape[1:])} in a single run"
        elif value.shape[1:] != single.shape[1:]:
            yield (
                f"{what} has shape {tuple(value.shape[1:])}, and {tuple(single.shape[1:])} in a "
                "single run"
            )
        elif not _close(value[index : index + 1], single, tolerance):
            slack = _slack(kind, site, run, bound)
            if not _close(value[index : index + 1], single, tolerance, slack):
                yield f"at several samples {what} is not that of a single run"


def _slack(kind: str, site: str, run: SingleRun, bound: BoundPass) -> Tensor | float:
    """The change of a value under roundings of the given values."""
    with pyro.validation_enabled(False):
        near = bound.single(
            {name: _rounded(value) for name, value in run.given.items()}
        )
    value, other = near.get(kind, {}).get(site), run.values[kind][site]
    if value is None:
        return 0.0
    slack = torch.minimum(10 * (value - other).abs(), _MOST_SLACK * other.abs())
    return slack.nan_to_num(0.0, 0.0)


def _rounded(value: Tensor) -> Tensor:
    """A value changed by a few roundings; whole numbers, which may be labels, stay."""
    if not value.is_floating_point():
        return value
    return torch.where(value == value.round(), value, value * (1 + _ROUNDING)).to(
        value.dtype
    )


def _close(
    value: Tensor, other: Tensor, tolerance: float, slack: Tensor | float = 0.0
) -> bool:
    if not other.is_floating_point():
        return torch.equal(value, other)
    size = other.abs()
    finite = size[size.isfinite()]
    mean: Tensor | float = 0.0
    if finite.numel():
        mean = finite.mean()
    same = (value - other).abs() <= tolerance * (size + mean) + slack
    return bool((same | (value == other) | (value.isnan() & other.isnan())).all())
