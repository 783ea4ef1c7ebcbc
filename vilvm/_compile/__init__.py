"""Tracing and compilation of Pyro programs, for training and evaluation."""

from vilvm._compile.compiler import machine_code
from vilvm._compile.guards import MOST_PROGRAMS, Guards, state_change_reason
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
from vilvm._compile.native import NativeProgram
from vilvm._compile.patches import UntraceableError, traceable
from vilvm._compile.tracing import Graph, mutated_inputs, reason_of, shapes, trace

__all__ = [
    "MOST_PROGRAMS",
    "Compile",
    "Compiler",
    "Graph",
    "Guards",
    "NativeProgram",
    "UntraceableError",
    "assert_matches",
    "check_compile",
    "graph",
    "inductor",
    "machine_code",
    "mutated_inputs",
    "program",
    "reason_of",
    "shapes",
    "state_change_reason",
    "trace",
    "traceable",
    "worth_compiling",
]
