"""Notes to the user, each given once in a process, as Python warnings."""

import warnings
from pathlib import Path

__all__ = ["Note", "note"]

_GIVEN: set[str] = set()
_PACKAGE = str(Path(__file__).parents[1])  # a note names the user's line, not ours


class Note(UserWarning):
    """A fact that a user may want to know, and that is no fault."""


def note(subject: str, text: str) -> None:
    """Gives a note, unless one on the same subject was given in this process.

    Arguments:
        subject: what it is about.
        text: one sentence.
    """
    if subject not in _GIVEN:
        _GIVEN.add(subject)
        warnings.warn(f"{text} (Said once.)", Note, skip_file_prefixes=(_PACKAGE,))
