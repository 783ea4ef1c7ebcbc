"""Pyro traced once, and compiled: what training and evaluation make their programs with."""

from vilvm.compiling.inductor import Compiler, graph, inductor
from vilvm.compiling.tracing import Graph, UntraceableError, shapes, trace, traceable, why

__all__ = ["Compiler", "Graph", "UntraceableError", "graph", "inductor", "shapes", "trace", "traceable", "why"]
