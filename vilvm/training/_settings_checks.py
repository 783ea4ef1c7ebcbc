"""Checks that a checkpoint has the settings of the run that resumes it."""

from pathlib import Path
from typing import Any

from vilvm.training.checkpoint import CheckpointError, spoiled

__all__ = ["check_settings"]


def check_settings(found: Path, mine: dict[str, Any], state: Any) -> None:
    """Raises CheckpointError at the first setting that differs.

    Arguments:
        found: the folder of the checkpoint.
        mine: the settings of this run.
        state: of the checkpoint.
    """
    theirs = state.get("settings") if isinstance(state, dict) else None
    if not isinstance(theirs, dict) or (set(theirs) ^ set(mine)) - {"columns"}:
        raise spoiled(found, "it is altered: it has other settings than those of a run")
    for name, value in mine.items():
        if name not in theirs:  # one of the two has no names of columns to compare
            continue
        other = theirs[name]
        if type(value) is type(other) and value == other:
            continue
        if name == "functions" and _of_two_pythons(value, other):
            continue
        raise CheckpointError(
            f"Checkpoint {found} {_difference(name, value, other)}; or start a new run."
        )


def _of_two_pythons(value: dict[str, str], other: Any) -> bool:
    """Whether two versions of Python made the digests, so that these cannot be compared."""
    if not isinstance(other, dict) or set(other) != set(value):
        return False
    return other["Python"] != value["Python"]


def _difference(name: str, value: Any, other: Any) -> str:
    """How a setting differs, and what to do."""
    if name in ("data", "validation"):
        return f"was made with other {name} data or another transform; resume with the same"
    if name == "columns":
        return "was made with other columns, or levels of columns; resume with the same"
    if not isinstance(value, dict) or not isinstance(other, dict):
        same = "the same"
        if "total_steps" in str(value) and "total_steps" in str(other):
            same = (
                "the same number of epochs and learning rate, which the schedule spans"
            )
        return (
            f"was made with {name} = {other}, this run has {value}; resume with {same}"
        )
    return _first_difference(name, value, other)


def _first_difference(name: str, value: dict[str, Any], other: dict[str, Any]) -> str:
    keys = {*value, *other} - {"Python"}
    key = min(k for k in keys if other.get(k) != value.get(k))
    if name == "functions":
        return (
            f"was made with another function, by its code or its constants: {key}; resume with "
            "the same"
        )
    before, now = (str(d.get(key, "none"))[:200] for d in (other, value))
    return (
        f"is of a model whose {name} differ, first {key!r} ({before}, now {now}); build the model "
        "as it was"
    )
