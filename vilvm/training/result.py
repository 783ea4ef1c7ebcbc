"""What ``fit`` returns, and what it tells its callbacks."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from vilvm.lvm import LatentVariableModel
from vilvm.training.history import History

__all__ = ["Event", "Fit"]


class Event(NamedTuple):
    """What a callback is told at every record: the model as it is, and the history, the newest
    record last.
    """

    lvm: LatentVariableModel
    history: History


@dataclass(frozen=True)
class Fit:
    """What ``fit`` returns; the parameters are in the model itself.

    Arguments:
        history: a record an epoch; where epochs are short, one every 50 steps, and later one
            whenever a twentieth as many steps again are taken.
        steps: taken, those before a resumption included.
        stopped: "finished", "early" (no better validation bound for `patience` records),
            "callback" or "interrupted".
        best_step: the step whose parameters the model now has: with validation data that of the
            best record, else the last.
        seconds: of training, those before a resumption included.
        compile_seconds: that compiling took, in this call; not part of `seconds`.
        skipped: steps left out because their loss or gradient was not finite.
        protocol: the data trained on; see ``Data.protocol``.
        settings: all that a checkpoint must agree with to be resumed.
    """

    history: History
    steps: int
    stopped: str
    best_step: int
    seconds: float
    compile_seconds: float
    skipped: int
    protocol: dict[str, Any]
    settings: dict[str, Any]
