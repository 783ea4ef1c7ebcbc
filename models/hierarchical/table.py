"""The type of the table of a family of models."""

from collections.abc import Callable

from vilvm.data.problem import Statement

__all__ = ["Table"]

Table = dict[str, Callable[[], Statement]]  # how to state each posterior, by name
