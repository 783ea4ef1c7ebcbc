"""Pyro traced once, and compiled: what training and evaluation make their programs with."""

from vilvm._compile.guards import MOST_PROGRAMS, Guards, moving
from vilvm._compile.inductor import (
    Compile,
    Compiler,
    assert_matches,
    check_compile,
    graph,
    inductor,
    program,
    worth_compiling,
)
from vilvm._compile.tracing import Graph, UntraceableError, shapes, trace, traceable, why, written

__all__ = [
    "MOST_PROGRAMS",
    "Compile",
    "Compiler",
    "Graph",
    "Guards",
    "UntraceableError",
    "assert_matches",
    "check_compile",
    "graph",
    "inductor",
    "moving",
    "program",
    "shapes",
    "trace",
    "traceable",
    "why",
    "worth_compiling",
    "written",
]
