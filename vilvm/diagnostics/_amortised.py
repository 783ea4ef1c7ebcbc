"""Whether a guide is amortised, so that it can be calibrated on data that its model simulates."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.lvm import ContractError, LatentVariableModel, NotApplicable
from vilvm.weights import Layout, LogWeights, find_layout, log_weights
from vilvm.weights.simulation import Rebuild, batches, undrawable

__all__ = ["all_equal", "check_amortised", "check_spread"]

_REFIT = "use vilvm.diagnostics.vsbc, which fits the guide anew to each data set."


def check_amortised(
    caller: str, lvm: LatentVariableModel, like: Any, rebuild: Rebuild | None, seed: int
) -> None:
    """Raises unless the guide has a spread and reads its batch, of any size, or equals the prior.

    Raises:
        NotApplicable: the guide is not amortised; or the data share a latent, and without `like`
            their number is unknown.
        ContractError: the guide has no spread, or breaks the contract.
    """
    if like is not None:
        _check_drawable(caller, lvm, like)
    stream = batches(lvm, 2, like=like, rebuild=rebuild)
    (first, _), (second, _) = next(stream), next(stream)
    layout = _layout_of_any_size(caller, lvm, first, like, rebuild)
    check_spread(caller, lvm, layout)
    if like is None and not layout.local:
        raise NotApplicable(
            f"{caller}: {type(lvm).__name__} has a latent that its data share; pass like=a batch "
            "as large as those the guide is for."
        )
    if _ignores_its_batch(lvm, layout, first, second, seed):
        raise NotApplicable(
            f"{caller}: the guide of {type(lvm).__name__} does not read its batch, so it fits "
            f"one data set at most; {_REFIT}"
        )


def check_spread(caller: str, lvm: LatentVariableModel, layout: Layout) -> None:
    """Raises ContractError if the guide puts a latent on one point."""
    if layout.degenerate or layout.deterministic:
        latent = (layout.degenerate or layout.latents)[0]
        raise ContractError(
            f"{caller}: the guide of {type(lvm).__name__} puts latent {latent!r} on "
            "one point, so it has no spread to calibrate; "
            "give it a guide with a density (vilvm.wrappers.fit_guide)."
        )


def _check_drawable(caller: str, lvm: LatentVariableModel, batch: Any) -> None:
    sites = undrawable(lvm, batch)
    if sites:
        raise NotApplicable(
            f"{caller}: {type(lvm).__name__} cannot be simulated, because the distribution of its "
            f"site {sites[0]!r} cannot be drawn from: give it a method sample."
        )


def _ignores_its_batch(
    lvm: LatentVariableModel, layout: Layout, first: Any, second: Any, seed: int
) -> bool:
    """Whether two different batches have the same guide, and it is not the prior."""
    runs: list[LogWeights] = []
    for batch in (first, second):
        with seeded(seed, tensors_of(first)[0].device):
            runs.append(log_weights(lvm, batch, 10))
    if not torch.equal(runs[0].log_guide, runs[1].log_guide):
        return False
    if not all_equal(*([w.latents[n] for n in layout.latents] for w in runs)):
        return False
    batches_differ = not all_equal(tensors_of(first), tensors_of(second))
    return batches_differ and runs[0].rate.abs().max().item() > 1e-4


def all_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists hold equal tensors."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _layout_of_any_size(
    caller: str,
    lvm: LatentVariableModel,
    batch: Any,
    like: Any,
    rebuild: Rebuild | None,
) -> Layout:
    """The layout on a batch like `like`, or of two data; the guide must run on other sizes too."""
    only = None
    try:
        layout = find_layout(lvm, batch)
        if like is not None and _can_be_halved(layout, Data(batch)):
            only = layout.num_data
            find_layout(lvm, Data(batch).subset(slice(0, only // 2)).x)
        return layout
    except NotApplicable:  # the guide remembers the data that it was fitted to
        raise NotApplicable(
            f"{caller}: the guide of {type(lvm).__name__} has parameters for each datum that it "
            f"was fitted to and is not for other data; {_REFIT}"
        ) from None
    except ContractError:
        if like is None:
            only = _size_of_parameters(lvm, rebuild)
        if only is None:
            raise
    raise _fits_one_size(caller, lvm, only)


def _can_be_halved(layout: Layout, data: Data) -> bool:
    return layout.local and data.divisible and layout.num_data == len(data) > 1


def _fits_one_size(caller: str, lvm: LatentVariableModel, size: int) -> NotApplicable:
    return NotApplicable(
        f"{caller}: the guide of {type(lvm).__name__} runs on batches of {size} data and not on "
        f"fewer, so it has parameters for each datum and is not for other data; {_REFIT}"
    )


def _size_of_parameters(
    lvm: LatentVariableModel, rebuild: Rebuild | None
) -> int | None:
    """The batch size among the lengths of the parameters on which the pair runs, or None."""
    if not isinstance(lvm, torch.nn.Module):
        return None
    lengths = {n for p in lvm.parameters() if p.requires_grad for n in p.shape}
    for size in sorted(n for n in lengths if n > 2):
        with suppress(ContractError):
            find_layout(lvm, next(batches(lvm, size, rebuild=rebuild))[0])
            return size
    return None
