"""Runs of the guide at given latents."""

from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from torch import Tensor

from vilvm.weights._conditioning import at_samples
from vilvm.weights._traces import run
from vilvm.weights.layout import Layout

__all__ = ["run_guide"]


def run_guide(
    guide: Callable[[Any], Any],
    batch: Any,
    given: Mapping[str, Tensor],
    num_samples: int | None,
    layout: Layout,
) -> poutine.Trace:
    """Runs q(z | x), all samples in parallel, on the subsample of the layout.

    Arguments:
        guide: called with a batch.
        batch: its argument.
        given: values by site, shape (num_samples, ...), to which sites are set.
        num_samples: size of the plate over samples; None for a single-sample run.
        layout: the layout of this batch.
    """
    fixed, samples = layout.fixed_subsample(), layout.samples(num_samples)
    with at_samples(given, num_samples, layout.nesting):
        return run(guide, "guide", batch, fixed, samples=samples)
