"""Validation at a record: ELBO, rate and distortion on held-out data, with one sample a datum."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.distributed import ProcessGroup
from vilvm.data.data import Data
from vilvm.lvm import ContractError, NonFiniteError, evaluation_mode
from vilvm.weights import Layout, find_layout, log_weights

__all__ = ["ValidationResult", "check_rows", "check_validation", "validate"]

_ROWS = 1000


class ValidationResult(NamedTuple):
    """Means over the data, in nats per datum (of all data together if they share a latent).

    Arguments:
        elbo: the evidence lower bound.
        se: its standard error over the data.
        rate: KL(q(z | x) ‖ p(z)).
        distortion: −E_q log p(x | z).
    """

    elbo: float
    se: float
    rate: float
    distortion: float


@torch.no_grad()
def validate(
    lvm: Any,
    objective: Any,
    data: Data,
    layout: Layout,
    ranks: ProcessGroup,
) -> ValidationResult:
    """The bound of a pair on data, in evaluation mode.

    Arguments:
        lvm: the model and guide.
        objective: of the training; its loss gives the bound if the model subsamples its data.
        data: this rank's share, which may be empty.
        layout: of the pair on some batch.
        ranks: that evaluate the other shares.

    Raises:
        NonFiniteError: a log-density is NaN.
        ContractError: the pair cannot run on these data.
    """
    with evaluation_mode(lvm):
        if not (layout.local or layout.scale == 1.0):
            elbo = _minus_mean_loss(lvm, objective, data, layout, ranks)
            return ValidationResult(elbo, math.nan, math.nan, math.nan)
        rows, error = _rows_or_error(lvm, data, layout)
        # No rank may stop alone: the others would wait for its rows.
        if ranks.any(error is not None, data.device):
            raise error or NonFiniteError(
                "another rank met a log-density that is NaN; see its message."
            )
    if layout.local:
        rows = ranks.gather(rows)
    values, likelihood = rows.unbind(-1)
    distortion = -likelihood.sum().item() / len(values)
    elbo = values.mean().item()
    se = math.nan
    if len(values) > 1:
        se = values.std().item() / len(values) ** 0.5
    return ValidationResult(elbo, se, -elbo - distortion, distortion)


def _minus_mean_loss(
    lvm: Any,
    objective: Any,
    data: Data,
    layout: Layout,
    ranks: ProcessGroup,
) -> float:
    """Minus the loss of the objective, averaged over the ranks that have data.

    A log-weight of a subsample does not estimate the ELBO of all data.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=data.device)
    if len(data):
        x = data.loaded().x
        here = find_layout(lvm, x, validate=False, plate=layout.data_plate)
        num_data = here.num_data * here.scale if here.local else 1.0
        sums[0] = -float(objective.loss(lvm.model, lvm.guide, x)) / num_data
        sums[1] = 1
    total, count = ranks.sum(sums).tolist()
    return total / count


def _rows_or_error(
    lvm: Any,
    data: Data,
    layout: Layout,
) -> tuple[Tensor, ContractError | None]:
    """The rows of all data (see ``_rows``), or no rows and the error of a part that failed."""
    rows = torch.zeros(0, 2, dtype=torch.float64, device=data.device)
    try:
        parts = _parts(data, layout) if len(data) else []
        return torch.cat([rows, *(_rows(lvm, part, layout) for part in parts)]), None
    except ContractError as error:
        return rows, error


def _rows(lvm: Any, part: Data, layout: Layout) -> Tensor:
    """Log-weight and log-likelihood of one sample a datum, float64, shape (num_data, 2), or (1, 2)
    for one joint weight.
    """
    here = find_layout(lvm, part.x, validate=False, plate=layout.data_plate)
    weights = log_weights(lvm, part.x, validate=False, layout=here)
    likelihood = weights.log_likelihood[0].reshape(-1)
    if not layout.local:
        likelihood = likelihood.sum()[None]
    return torch.stack((weights.log_weight[0].reshape(-1), likelihood), -1).double()


def check_validation(lvm: Any, data: Data, layout: Layout) -> None:
    """Raises ContractError unless a pair runs on some data, with its plate on their first axis."""
    parts = _parts(data, layout)
    for part in parts:
        here = find_layout(lvm, part.x, plate=layout.data_plate)
        if len(parts) > 1:
            check_rows(lvm, here, len(part))


def check_rows(lvm: Any, layout: Layout, rows: int) -> None:
    """Raises ContractError unless the plate over the data is along their first axis.

    Arguments:
        lvm: the model and guide, named in the error.
        layout: of the pair on some data.
        rows: the length of the first axis of these data, which batches are cut along.
    """
    if layout.local and not layout.subsample and layout.num_data != rows:
        raise ContractError(
            "fit: batches are cut along the first axis of the data, and plate "
            f"{layout.data_plate!r} of {type(lvm).__name__} is not over it (it has "
            f"{layout.num_data} data for {rows} rows): put the data along the first axis "
            "(x.transpose(0, 1)), or train on them whole, without batch_size."
        )


def _parts(data: Data, layout: Layout) -> Sequence[Data]:
    if len(data) <= _ROWS or not (layout.local and data.divisible):
        return [data.loaded()]
    return data.chunks(_ROWS)
