"""Shared by the calibration diagnostics: options, the size of a pass, and hidden ranks."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability
from vilvm.diagnostics._uniformity import uniformity_p_values
from vilvm.lvm import LatentVariableModel, device_of
from vilvm.weights.prepared import rows_in_a_pass

__all__ = [
    "HIDDEN",
    "CalibrationOptions",
    "check_options",
    "missing_simulations",
    "rows_of_a_pass",
    "shown",
    "uniformity_of_shown",
]

HIDDEN = -1  # in place of the rank of a latent that a mask hides


class CalibrationOptions(NamedTuple):
    """Options of a calibration, checked."""

    num_simulations: int
    num_draws: int
    false_alarm: float


def check_options(
    caller: str, num_simulations: Any, num_draws: Any, false_alarm: Any, rebuild: Any
) -> CalibrationOptions:
    """Returns the options; raises ValueError if one is out of range."""
    if rebuild is not None and not callable(rebuild):
        raise ValueError(
            f"{caller}: rebuild must be a function of the observed values; got a "
            f"{type(rebuild).__name__}."
        )
    return CalibrationOptions(
        num_simulations=check_number(f"{caller}: num_simulations", num_simulations),
        num_draws=check_number(f"{caller}: num_draws", num_draws),
        false_alarm=check_probability(f"{caller}: false_alarm", false_alarm),
    )


def rows_of_a_pass(
    lvm: LatentVariableModel, num_draws: int, batch_size: int | None
) -> int:
    """The number of simulations in a pass."""
    if batch_size is not None:
        return check_number("batch_size", batch_size)
    return max(1, rows_in_a_pass(device_of(lvm)) // num_draws)


def missing_simulations(ranks: Tensor, wanted: int) -> str:
    """Describes the simulations that time did not allow; empty if all were made."""
    if len(ranks) >= wanted:
        return ""
    return f"{len(ranks)} of {wanted} simulations"


def shown(ranks: Tensor) -> Tensor:
    """The ranks of one quantity, shape (L,), in the simulations where no mask hides it."""
    return ranks[ranks != HIDDEN]


def uniformity_of_shown(ranks: Tensor, num_draws: int) -> Tensor:
    """p-values of the test of uniformity, shape (K,), without hidden ranks."""
    if bool((ranks != HIDDEN).all()):
        return uniformity_p_values(ranks, num_draws)
    return torch.stack(
        [uniformity_p_values(shown(column), num_draws) for column in ranks.T]
    )
