"""Guards: the Python state that a trace has read; a program is valid only while it is unchanged.

Tracing freezes the numbers, flags and functions that Python reads from attributes, closures and
globals. So every place that the code of a pair can reach is recorded with its value before the
trace, and compared before the program is used. A place counts as reachable if reachable code loads
its name, so a callback may store anything else on a module. State that is reached otherwise (by an
iterator, an extension) is not found here; comparisons with the eager step detect its changes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from vilvm._compile.places import ABSENT, SCALARS, Place, Whole
from vilvm._compile.reachable import reachable_places

__all__ = ["MOST_PROGRAMS", "Guards", "state_change_reason"]

MOST_PROGRAMS = 8  # for tensors of the same shapes, one for each state of Python


def state_change_reason(name: str) -> str:
    """Why a pair that changes the state `name` itself cannot be compiled."""
    return f"{name} changes whenever the pair is run, and a program would freeze it"


class Guards:
    """The state that code can read, by place.

    Arguments:
        places: all places, with their values.
    """

    def __init__(self, places: Sequence[Place]):
        self.places = tuple(places)
        self._quick = tuple((p.holder.get, p.key, p.value, p) for p in places)

    @classmethod
    def of(
        cls,
        roots: Iterable[Any],
        leave: Callable[[Any, Any], bool] = lambda holder, key: False,
    ) -> "Guards":
        """The state that some code can read now.

        Arguments:
            roots: modules and functions.
            leave: whether to leave out a place, given its holder and key.
        """
        places = reachable_places(list(roots))
        return cls([p for p in places if not leave(p.holder, p.key)])

    def changed(self) -> Place | None:
        """The first place whose value has changed."""
        for get, key, value, place in self._quick:
            if get(key, ABSENT) is not value and not place.is_unchanged:
                return place
        return None

    def settled(self, tensors: Iterable[Tensor]) -> tuple["Guards", "Guards"]:
        """Splits the guards after a trace.

        Arguments:
            tensors: those that the graph reads; no others are compared.

        Returns:
            The guards of places that the trace did not change, and those of places that it did,
            with their new values.
        """
        read = {id(t) for t in tensors}
        unchanged = []
        moved = []
        for place in self.places:
            if isinstance(place.value, Tensor) and id(place.value) not in read:
                continue
            if place.is_unchanged:
                unchanged.append(place)
            elif isinstance(place.value, (Tensor, *SCALARS)):
                moved.append(place._replace(value=place.now()))
        return Guards(unchanged), Guards(moved)

    def what(self) -> str:
        """A description of the first change; empty if nothing has changed."""
        place = self.changed()
        if place is None:
            return ""
        now = place.now()
        if isinstance(place.holder, Whole):
            return f"{place.name} was changed"
        if isinstance(place.value, SCALARS) and isinstance(now, SCALARS):
            return f"{place.name} changed from {place.value!r} to {now!r}"
        if now is ABSENT:
            return f"{place.name} was removed"
        return f"{place.name} was replaced"
