"""Runs of the guide, at given latents or at its own draws."""

from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from torch import Tensor

from vilvm.weights._conditioning import at_samples, drawn_values
from vilvm.weights._passes import Pass, Values
from vilvm.weights._sites import Sites, own_densities
from vilvm.weights._supports import guide_sites
from vilvm.weights._traces import run
from vilvm.weights.layout import Layout

__all__ = ["guide_pass", "run_guide"]


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


def guide_pass(
    lvm: Any, layout: Layout, read: Callable[[Sites, int], Values], name: str
) -> Pass:
    """A pass of the guide at its own draws.

    Arguments:
        lvm: the model and guide.
        layout: the layout of the batch.
        read: returns the values from the guide's sites and the number of samples.
        name: describes the values; see ``Pass``.
    """

    def draw(
        batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        found = guide_sites(run_guide(lvm.guide, batch, given, num_samples, layout))
        size = num_samples or 1
        return {
            **read(found, size),
            "drawn": drawn_values(found, size, layout.nesting),
            "densities": own_densities("guide", found, size, layout.nesting),
        }

    return Pass(draw, f"draws of the guide, {name}")
