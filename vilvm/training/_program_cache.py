"""The programs of a compiled step, kept while the Python state that they read is unchanged."""

from typing import Any

from torch import Tensor

from vilvm._compile import MOST_PROGRAMS, UntraceableError
from vilvm.training._traced_step import Program, StepTracer

__all__ = ["ProgramCache"]

# The least mean number of steps between two replacements of a tensor; each needs a new trace.
_SELDOM = 50


class ProgramCache:
    """Programs by key: one for every shape of batch and every state of Python.

    Arguments:
        tracer: makes the programs.
    """

    def __init__(self, tracer: StepTracer):
        self.tracer = tracer
        self._programs: dict[Any, list[Program]] = {}
        self._replaced = 0  # how often a tensor that a graph reads was replaced

    def __len__(self) -> int:
        return len(self._programs)

    def clear(self) -> None:
        """Drops all programs."""
        self._programs.clear()

    def of(self, key: Any) -> list[Program]:
        """The programs of a key, the newest last."""
        return self._programs.setdefault(key, [])

    def valid(self, key: Any) -> Program | None:
        """The first program of a key whose Python state is unchanged."""
        for program in self.of(key):
            if program.guards.changed() is None:
                return program
        return None

    def what_changed(self, key: Any) -> str:
        """What has changed since the newest program was made; empty without one."""
        programs = self.of(key)
        return programs[-1].guards.what() if programs else ""

    def check_changes(self, key: Any, taken: int) -> None:
        """Raises UntraceableError if Python state changes too often.

        Arguments:
            key: of the programs.
            taken: how many compiled steps were taken.
        """
        changed = self.what_changed(key)
        count = len(self.of(key))
        if count >= MOST_PROGRAMS:
            raise UntraceableError(
                f"{changed}, after {count} such changes; keep it in a buffer of the module"
            )
        if self._replaced > MOST_PROGRAMS and taken < _SELDOM * self._replaced:
            raise UntraceableError(
                f"{changed} {self._replaced} times; change it in place (.copy_, .fill_)"
            )

    def add(self, key: Any, program: Program) -> bool:
        """Adds a program, which replaces those of the same graph; whether the graph is new."""
        kept = []
        same = []
        for other in self.of(key):
            if other.run is program.run:
                same.append(other)
            else:
                kept.append(other)
        for other in same:
            self._count_change(other)
        self._programs[key] = [*kept, program]
        return not same

    def _count_change(self, program: Program) -> None:
        """Counts a change of state that left the graph of a program the same."""
        place = program.guards.changed()
        if place is None:
            return
        if isinstance(place.value, Tensor):
            self._replaced += 1  # the new tensor becomes an input of a new program
        else:
            self.tracer.irrelevant[place.name] += 1
