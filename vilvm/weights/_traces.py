"""Traces of a model or guide; only this file asks Pyro for them."""

from contextlib import ExitStack, suppress
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.uncondition_messenger import UnconditionMessenger

from vilvm._runtime.unchanged import Unchanged
from vilvm.data.tensors import named_tensors
from vilvm.lvm import ContractError
from vilvm.weights._errors import plain_errors
from vilvm.weights._sites import FirstEnumerated, Sites, sites_of

__all__ = ["Unobserved", "run", "run_once", "trace_of"]

# plate dimensions that are tried for a model that runs only under enumeration
_MOST_PLATES = 6


def run(
    half: Any,
    part: str,
    batch: Any,
    *replay: poutine.Trace | None,
    samples: tuple[int, int] | None = None,
) -> poutine.Trace:
    """The trace of one half of a pair, its model or its guide.

    Arguments:
        half: the model or the guide.
        part: "model" or "guide", for errors.
        batch: what the half is called with.
        replay: traces from which sites take their values.
        samples: size and dimension of the plate over samples; None for a single-sample run.
    """
    for source in replay:
        if source is not None:
            half = poutine.replay(half, trace=source)
    given = Unchanged(named_tensors(batch))
    with plain_errors(part, batch), ExitStack() as stack:
        if samples is not None:
            stack.enter_context(pyro.plate("_monte_carlo", samples[0], dim=samples[1]))
        trace = poutine.trace(half).get_trace(batch)
    given.check(f"The {part}")
    return trace


def trace_of(sites: Sites) -> poutine.Trace:
    """A trace of these sites, to replay."""
    trace = poutine.Trace()
    for name, site in sites.items():
        trace.add_node(name, **site)
    return trace


def run_once(
    model: Any, batch: Any, *replay: poutine.Trace | None
) -> tuple[poutine.Trace, int]:
    """The trace of a single-sample run of the model, and 0.

    A shape assertion may make a model run only under enumeration. Its trace is then taken at the
    first value of every enumerated latent, and the second result is the smallest number of plate
    dimensions with which it runs.
    """
    try:
        return run(model, "model", batch, *replay), 0
    except ContractError:
        for nesting in range(_MOST_PLATES + 1):
            with suppress(ContractError):
                enumerated = poutine.enum(model, first_available_dim=-1 - nesting)
                trace = run(enumerated, "model", batch, *replay)
                if _enumerates(trace):
                    return _at_first_values(trace, nesting), nesting
        raise


def _enumerates(trace: poutine.Trace) -> bool:
    sites = sites_of(trace).values()
    return any(site["infer"].get("_enumerate_dim") is not None for site in sites)


def _at_first_values(trace: poutine.Trace, nesting: int) -> poutine.Trace:
    """A trace at the first index of every dimension left of the plates."""
    for site in sites_of(trace).values():
        fn = site["fn"]
        extra = site["value"].dim() - fn.event_dim - nesting
        site["value"] = site["value"][(0,) * max(extra, 0)]
        site["fn"] = FirstEnumerated(fn, nesting)
    return trace


class Unobserved(UnconditionMessenger):
    """Draws the observed sites, but not ``pyro.deterministic``.

    A deterministic value would be expanded to the shape of its plates.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)
