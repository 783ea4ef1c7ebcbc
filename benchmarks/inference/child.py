"""One run of one method in its own process, timed.

The process imports what the method needs, reads the data, and starts its clocks. So the times
include compiling and exclude imports.
"""

import importlib
import importlib.util
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.inference.scores import score
from benchmarks.inference.table import Row

__all__ = ["METHODS", "known_posteriors", "run_one"]

OURS = {"infer": {}, "unrefined": {"refine": False}}
PEERS = ("nuts", "normal", "mvn")
METHODS = (*OURS, *PEERS)

# What torch imports at the first compilation only, which would count as compiling.
_COMPILER = (
    "torch._dynamo",
    "torch._inductor.bounds",
    "torch._inductor.compile_fx",
    "torch.utils.cpp_extension",
    "torchgen.aoti.fallback_ops",
    "vilvm._compile.products",
)


class Outcome(NamedTuple):
    """What a method hands over.

    Arguments:
        draws: by site, latent or deterministic, shape (num_draws, *event).
        gradients: evaluations, one a point.
        trusted, verdict, rung: as the method says; None if it says nothing.
    """

    draws: Mapping[str, Tensor]
    gradients: int
    trusted: bool | None = None
    verdict: str | None = None
    rung: str | None = None


def known_posteriors() -> dict[str, Callable[[], Any]]:
    """Functions that make the problems, by name: of posteriordb, and hierarchical ones."""
    known = {}
    for module in ("posteriordb", "hierarchical"):
        path = f"vilvm.models.{module}"
        if importlib.util.find_spec(path):
            family = importlib.import_module(path)
            known |= {n: lambda n=n, f=family: f.posterior(n) for n in family.names()}
    return known


def run_one(name: str, method: str, seed: int) -> Row:
    """The row of a posterior, a method and a seed; an error that the method raises is in it."""
    problem = known_posteriors()[name]()
    reference = problem.reference()
    infer = _ours(method, problem) if method in OURS else _peer(method, problem)
    row = Row(name, method, seed)
    cpu, wall = _cpu_seconds(), time.perf_counter()
    try:
        found = infer(seed)
    except Exception as error:
        return row._replace(**_times(cpu, wall), error=_sentence(error))
    row = row._replace(
        **_times(cpu, wall),
        gradients=found.gradients,
        trusted=found.trusted,
        verdict=found.verdict,
        rung=found.rung,
    )
    scored = score(problem.scalars(found.draws), reference)
    return row._replace(**scored._asdict())


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _times(cpu: float, wall: float) -> dict[str, float]:
    return {
        "cpu_seconds": _cpu_seconds() - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }


def _cpu_seconds() -> float:
    """User seconds of this process and of its children that have ended."""
    of = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(resource.getrusage(who).ru_utime for who in of)


def _ours(method: str, problem: Any) -> Callable[[int], Outcome]:
    import vilvm

    for module in _COMPILER:
        importlib.import_module(module)

    def infer(seed: int) -> Outcome:
        options = OURS[method]
        p = vilvm.infer(problem.model, problem.data, seed=seed, **options)  # type: ignore[attr-defined]
        return Outcome(p.draws, p.gradients, p.trusted, p.verdict, p.rung)

    return infer


def _peer(method: str, problem: Any) -> Callable[[int], Outcome]:
    from benchmarks.numpyro_models import methods

    model, arguments = _numpyro_model(problem)

    def infer(seed: int) -> Outcome:
        draws, gradients = methods.METHODS[method](model, arguments, seed)
        return Outcome({n: torch.from_numpy(v) for n, v in draws.items()}, gradients)

    return infer


def _numpyro_model(problem: Any) -> tuple[Any, dict[str, Any]]:
    """The NumPyro model of a problem, and its arguments in float64."""
    from benchmarks.numpyro_models.posteriordb import POSTERIORS

    if problem.name in POSTERIORS:
        given = problem.reference().data.items()
        return POSTERIORS[problem.name]({n: _float64(v) for n, v in given})
    models = importlib.import_module("benchmarks.numpyro_models.hierarchical").MODELS
    return models[problem.name]


def _float64(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy().astype(np.float64)
    return value
