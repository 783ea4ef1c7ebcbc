"""The look at held-out data that a record holds: ELBO, rate and distortion, of one sample a datum."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from vilvm.data import Data
from vilvm.lvm import evaluation_mode
from vilvm.weights import Layout, layout, log_weights
from vilvm.world import World

__all__ = ["Look", "check", "look"]

_ROWS = 1000


class Look(NamedTuple):
    """Means over the data, in nats per datum (of all data together if they share a latent), and the ELBO's standard error."""

    elbo: float
    se: float
    rate: float
    distortion: float


@torch.no_grad()
def look(lvm: Any, objective: Any, data: Data, plan: Layout, ranks: World) -> Look:
    """What `lvm` says of `data`, in evaluation mode; `plan` is its layout on some batch, and `data` what this rank looks at, or none.

    Raises:
        ContractError: a log-density is NaN.
    """
    with evaluation_mode(lvm):
        if not (plan.local or plan.scale == 1.0):
            # One weight of part of the data is no estimate of the whole: the loss is.
            data = data.loaded()
            here = layout(lvm, data.x, validate=False, plate=plan.data_plate)
            elbo = -float(objective.loss(lvm.model, lvm.guide, data.x)) / (here.num_data * here.scale if here.local else 1.0)
            elbo = ranks.sum(torch.tensor(elbo / ranks.size, dtype=torch.float64, device=data.device)).item()
            return Look(elbo, math.nan, math.nan, math.nan)
        rows = [torch.zeros(0, 2, dtype=torch.float64, device=data.device)]
        for part in _parts(data, plan) if len(data) else []:
            here = layout(lvm, part.x, validate=False, plate=plan.data_plate)
            weights = log_weights(lvm, part.x, validate=False, plan=here)
            likelihood = weights.log_likelihood[0].reshape(-1)
            rows.append(
                torch.stack([weights.log_weight[0].reshape(-1), likelihood if plan.local else likelihood.sum()[None]], -1).double()
            )
    values, likelihood = (ranks.rows(torch.cat(rows)) if plan.local else torch.cat(rows)).unbind(-1)
    distortion = -likelihood.sum().item() / len(values)
    elbo = values.mean().item()
    return Look(elbo, values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan, -elbo - distortion, distortion)


def check(lvm: Any, data: Data, plan: Layout) -> None:
    """Raises ContractError, where `lvm` cannot take these data."""
    for part in _parts(data, plan):
        layout(lvm, part.x, plate=plan.data_plate)


def _parts(data: Data, plan: Layout) -> Sequence[Data]:
    if len(data) <= _ROWS or not (plan.local and data.divisible):
        return [data.loaded()]
    return data.parts(_ROWS)
