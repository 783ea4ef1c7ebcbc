"""The look at held-out data that a record holds: ELBO, rate and distortion, of one sample a datum."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.distributed import ProcessGroup
from vilvm.data.data import Data
from vilvm.lvm import ContractError, NonFiniteError, evaluation_mode
from vilvm.weights import Layout, find_layout, log_weights

__all__ = ["ValidationResult", "check", "check_rows", "look"]

_ROWS = 1000


class ValidationResult(NamedTuple):
    """Means over the data, in nats per datum (of all data together if they share a latent), and
    the ELBO's standard error.
    """

    elbo: float
    se: float
    rate: float
    distortion: float


@torch.no_grad()
def look(
    lvm: Any, objective: Any, data: Data, layout: Layout, ranks: ProcessGroup
) -> ValidationResult:
    """What `lvm` says of `data`, in evaluation mode; `layout` is its layout on some batch, and
    `data` what this rank looks at, or none.

    Raises:
        NonFiniteError: a log-density is NaN.
        ContractError: the pair cannot run on these data.
    """
    with evaluation_mode(lvm):
        if not (layout.local or layout.scale == 1.0):
            return ValidationResult(
                _mean_loss(lvm, objective, data, layout, ranks), math.nan, math.nan, math.nan
            )
        rows, error = torch.zeros(0, 2, dtype=torch.float64, device=data.device), None
        try:
            rows = torch.cat(
                [
                    rows,
                    *(
                        _weighed(lvm, part, layout)
                        for part in (_parts(data, layout) if len(data) else [])
                    ),
                ]
            )
        except ContractError as found:
            error = found
        # for else the others would wait for the rows of this one
        if ranks.any(error is not None, data.device):
            raise error or NonFiniteError(
                "another rank met a log-density that is NaN; look at what it says."
            )
    values, likelihood = (ranks.gather(rows) if layout.local else rows).unbind(-1)
    distortion = -likelihood.sum().item() / len(values)
    elbo = values.mean().item()
    return ValidationResult(
        elbo,
        values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan,
        -elbo - distortion,
        distortion,
    )


def _mean_loss(lvm: Any, objective: Any, data: Data, layout: Layout, ranks: ProcessGroup) -> float:
    """The ELBO by the loss, of which one weight of part of the data is no estimate: its mean over
    the ranks that have data.
    """
    told = torch.zeros(2, dtype=torch.float64, device=data.device)
    if len(data):
        x = data.loaded().x
        here = find_layout(lvm, x, validate=False, plate=layout.data_plate)
        told[0] = -float(objective.loss(lvm.model, lvm.guide, x)) / (
            here.num_data * here.scale if here.local else 1.0
        )
        told[1] = 1
    total, count = ranks.sum(told).tolist()
    return total / count


def _weighed(lvm: Any, part: Data, layout: Layout) -> Tensor:
    """Log-weight and log-likelihood of one sample a datum, float64, shape (num_data, 2), or (1, 2)
    for one joint weight.
    """
    here = find_layout(lvm, part.x, validate=False, plate=layout.data_plate)
    weights = log_weights(lvm, part.x, validate=False, layout=here)
    likelihood = weights.log_likelihood[0].reshape(-1)
    both = (
        weights.log_weight[0].reshape(-1),
        likelihood if layout.local else likelihood.sum()[None],
    )
    return torch.stack(both, -1).double()


def check(lvm: Any, data: Data, layout: Layout) -> None:
    """Raises ContractError, where `lvm` cannot take these data, or their plate is not along the
    axis that they are cut along.
    """
    parts = _parts(data, layout)
    for part in parts:
        here = find_layout(lvm, part.x, plate=layout.data_plate)
        if len(parts) > 1:
            check_rows(lvm, here, len(part))


def check_rows(lvm: Any, layout: Layout, rows: int) -> None:
    """Raises ContractError, where the plate over the data is not over the first axis, of `rows`,
    which batches are cut along.
    """
    if layout.local and not layout.subsample and layout.num_data != rows:
        raise ContractError(
            "fit: batches are cut along the first axis of the data, and plate "
            f"{layout.data_plate!r} of {type(lvm).__name__} is not over it "
            f"(it has {layout.num_data} data for {rows} rows): put the data along the first axis "
            "(x.transpose(0, 1)), or train on them whole, "
            "without batch_size."
        )


def _parts(data: Data, layout: Layout) -> Sequence[Data]:
    if len(data) <= _ROWS or not (layout.local and data.divisible):
        return [data.loaded()]
    return data.chunks(_ROWS)
