"""Training: ``fit`` for any pair and any objective, with checkpoints and a history."""

from vilvm.training.checkpoint import CheckpointError
from vilvm.training.fit import fit
from vilvm.training.history import History, Record
from vilvm.training.optimizers import by_name, one_cycle
from vilvm.training.result import Event, Fit
from vilvm.training.step import NonFiniteLossError

__all__ = [
    "CheckpointError",
    "Event",
    "Fit",
    "History",
    "NonFiniteLossError",
    "Record",
    "by_name",
    "fit",
    "one_cycle",
]
