"""How a pair is laid out on a batch: its plates, its latents, its scale. Found by running it once."""

from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from vilvm.data import tensors_of
from vilvm.lvm import LatentVariableModel, check_contract, module_parameters
from vilvm.weights.contract import check_latents, check_plates, check_shape, enumerable
from vilvm.weights.traces import Sites, log_prob, nesting_of, run, sites_of

__all__ = ["Layout", "data_plate", "held_still", "layout"]


class Layout(NamedTuple):
    """How a pair is laid out on a batch: found by running it once.

    Arguments:
        nesting: how many tensor dimensions the plates take.
        data_plate: the name of the plate over the data, or None.
        data_dim: its dimension (negative, counted from the right of the batch shape), or None.
        num_data: data in the plate; 1 without one.
        local: whether every latent stands in the data plate, so that weights are per datum.
        scale: the factor on the observed sites, by which a Pyro loss exceeds the sum over the batch.
        latents: names, in the model's order.
        observed: names, in the model's order.
        families: the distribution of each observed site, by name.
        enumerated: latents that the model marks for parallel enumeration and the guide leaves out.
        subsample: the plates that subsample their data at random, and the indices they drew.
    """

    nesting: int
    data_plate: str | None
    data_dim: int | None
    num_data: int
    local: bool
    scale: float
    latents: tuple[str, ...]
    observed: tuple[str, ...]
    families: dict[str, str]
    enumerated: tuple[str, ...]
    subsample: dict[str, Any]

    @property
    def sample_dim(self) -> int:
        """The dimension of the plate over Monte Carlo samples: left of every plate of the model."""
        return -1 - self.nesting


def layout(lvm: LatentVariableModel, batch: Any, validate: bool = True) -> Layout:
    """Runs the pair once on `batch`, holds it to the contract, and says how it is laid out.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        validate: whether Pyro checks that parameters and values lie where they must.

    Raises:
        ContractError: the pair cannot run on this batch, its latents do not match, it observes nothing, or a log-density has
            dimensions that no plate accounts for.
    """
    check_contract(lvm)
    with torch.no_grad(), module_parameters(lvm), pyro.validation_enabled(validate):
        guide_trace = run(lvm.guide, "guide", batch)
        model_trace = run(lvm.model, "model", batch, guide_trace)
        model, guide = sites_of(model_trace), sites_of(guide_trace)
        check_plates(model_trace, guide_trace)
        check_latents(lvm, model, guide)
        for part, sites in (("model", model), ("guide", guide)):
            for site in sites.values():
                check_shape(part, site, log_prob(part, site))
    return _read_layout(lvm, batch, model, guide, [model_trace, guide_trace])


def _read_layout(lvm: object, batch: Any, model: Sites, guide: Sites, traces: list[Any]) -> Layout:
    observed = {n: s for n, s in model.items() if s["is_observed"]}
    latents = {n: s for n, s in model.items() if not s["is_observed"]}
    plate = data_plate(batch, list(observed.values()))
    drawn = {n: s for t in traces for n, s in t.nodes.items() if s["type"] == "sample" and site_is_subsample(s)}
    scale = next(iter(observed.values()))["scale"]
    return Layout(
        nesting=nesting_of(model, guide),
        data_plate=plate.name if plate else None,
        data_dim=plate.dim if plate else None,
        num_data=plate.size if plate else 1,
        local=plate is not None
        and all(plate.name in {f.name for f in s["cond_indep_stack"]} for s in [*latents.values(), *guide.values()]),
        scale=float(scale.mean()) if isinstance(scale, Tensor) else float(scale),
        latents=tuple(latents),
        observed=tuple(observed),
        families={n: _family(s["fn"]) for n, s in observed.items()},
        enumerated=tuple(n for n, s in latents.items() if n not in guide and enumerable(s)),
        subsample={n: s for n, s in drawn.items() if s["fn"].subsample_size is not None and s["fn"].subsample_size < s["fn"].size},
    )


def _family(fn: Any) -> str:
    """The name of a distribution, under ``to_event``, ``mask`` and ``expand``."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__.removeprefix("Independent")


def data_plate(batch: Any, observed: list[Any]) -> Any:
    """The plate over the data: of the plates around every observed site, the outermost whose size is the batch's, else the outermost."""
    common = [f for f in observed[0]["cond_indep_stack"] if f.vectorized and f.name != "_monte_carlo"] if observed else []
    for site in observed[1:]:
        names = {f.name for f in site["cond_indep_stack"]}
        common = [f for f in common if f.name in names]
    lengths = {t.shape[0] for t in tensors_of(batch) if t.dim()}
    matching = [f for f in common if f.size in lengths or f.full_size in lengths]
    return next(iter(matching or common), None)


def held_still(plan: Layout) -> poutine.Trace | None:
    """A trace that holds the plates' random subsamples still, so that every pass sees the same data."""
    if not plan.subsample:
        return None
    trace = poutine.Trace()
    for name, site in plan.subsample.items():
        trace.add_node(name, **site)
    return trace
