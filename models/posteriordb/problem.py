"""What the families of models share: the type of their tables, and that of a posterior.

Reference: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vilvm.data.problem import Problem, Statement

__all__ = ["Given", "Problem", "Statement", "Table"]

Given = Mapping[str, Any]  # the variables of posteriordb
Table = dict[str, Callable[[Given], Statement]]  # how to state each posterior, by name
