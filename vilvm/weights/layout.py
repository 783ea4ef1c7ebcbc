"""How a pair is laid out on a batch: its plates, its latents, its scale.

Found by running it once.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from vilvm._runtime.random import preserved_rng
from vilvm._runtime.unchanged import not_seeded
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    check_contract,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._per_datum import Indices, check_indices, check_known
from vilvm.weights._supports import degenerate_latents, guide_sites, masked_latents
from vilvm.weights._traces import (
    Put,
    Sites,
    family,
    log_prob,
    mask_of,
    nesting_of,
    own_dims,
    run,
    run_once,
    sites_of,
)
from vilvm.weights._vectorisation import Ways
from vilvm.weights.checks import check_latents, check_plates, check_shape, enumerable

__all__ = ["Layout", "data_plate", "find_layout", "guide_sites", "held_still", "place"]


class Layout(NamedTuple):
    """How a pair is laid out on a batch: found by running it once.

    Arguments:
        nesting: how many tensor dimensions the plates take.
        data_plate: the name of the plate over the data, or None.
        data_dim: its dimension (negative, counted from the right of the batch shape), or None.
        num_data: data in the plate; 1 without one.
        full_size: data that the plate says there are in all, of which those in it are a batch; 1
            without one.
        local: whether every latent stands in the data plate, so that weights are per datum.
        scale: the factor on the observed sites, by which a Pyro loss exceeds the sum over the
            batch.
        model_scales: the factor on each site of the model; one number, or a tensor.
        guide_scales: likewise of the guide.
        tempered: what ``poutine.scale`` alone puts on each site of the model, in the mean, where
            that is not one factor for all.
        latents: those that the guide draws, in the model's order.
        observed: names, in the model's order.
        sites: of model and guide, each with its distribution, the shape of an event and the plates
            around it, in words.
        families: the distribution of each observed site, by name, and which part of it is scored,
            if not all.
        enumerated: latents that the model marks for parallel enumeration and the guide leaves out,
            which are summed over.
        degenerate: latents that the guide puts on one point, so that it has no density there.
        improper: latents whose prior is flat, which is no probability density.
        masked: latents of which the model masks entries that the guide does not; these are
            marginalised (``vilvm.weights._supports``).
        data_axes: by latent, which dimension of its draws is that of the data: 1, unless a plate
            stands left of theirs; none if shared.
        subsample: the plates that subsample their data at random, and the indices they drew.
        ways: how passes at many samples are run, as far as it has been found out
            (``vilvm.weights._vectorisation``).
    """

    nesting: int
    data_plate: str | None
    data_dim: int | None
    num_data: int
    full_size: int
    local: bool
    scale: float
    model_scales: dict[str, float | Tensor]
    guide_scales: dict[str, float | Tensor]
    tempered: dict[str, float]
    latents: tuple[str, ...]
    observed: tuple[str, ...]
    sites: dict[str, str]
    families: dict[str, str]
    enumerated: tuple[str, ...]
    degenerate: tuple[str, ...]
    improper: tuple[str, ...]
    masked: tuple[str, ...]
    data_axes: dict[str, int]
    subsample: dict[str, Any]
    ways: Ways

    @property
    def sample_dim(self) -> int:
        """The dimension of the plate over Monte Carlo samples: left of every plate of the model."""
        return -1 - self.nesting

    def samples(self, num_samples: int | None) -> tuple[int, int] | None:
        """The plate over samples, its size and dimension; None for the single-sample run."""
        return None if num_samples is None else (num_samples, self.sample_dim)

    def is_in_data(self, site: Any) -> bool:
        """Whether a site stands in the plate over the data."""
        return self.data_plate is not None and _stands_in(site, self.data_plate)

    def data_axis(self, site: Any) -> int | None:
        """Which dimension of the draws of a site, of a single-sample run, is that of the data
        (samples are dimension 0); None if none.
        """
        found = place(
            site, next((f for f in site["cond_indep_stack"] if f.name == self.data_plate), None)
        )
        return None if found is None else found + 1


def find_layout(
    lvm: LatentVariableModel,
    batch: Any,
    validate: bool = True,
    plate: str | None = None,
    *,
    any_data: bool = False,
) -> Layout:
    """Runs the pair once on `batch`, holds it to the contract, and says how it is laid out.

    The pair is in evaluation mode meanwhile, so that a look at it changes no batch statistics.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        validate: whether Pyro checks that parameters and values lie where they must.
        plate: the name of the plate over the data, if it is known from another batch; found by its
            size otherwise.
        any_data: whether the batch may be of other data than a guide with parameters of single
            data was fitted to, which is right where the guide's draws are not used.

    Raises:
        ContractError: the pair cannot run on this batch, changes it in place, seeds torch's
            generators, its latents do not match, it observes nothing, a log-density has
            dimensions that no plate accounts for, or two plates might be that over the data; an
            autoguide draws indices of its own.
        NotApplicable: the guide has parameters of single data, and these are others.
    """
    check_contract(lvm)
    if not any_data:
        check_known(lvm, batch)
    with (
        torch.no_grad(),
        module_parameters(lvm),
        evaluation_mode(lvm),
        pyro.validation_enabled(validate),
    ):
        indices = Indices()
        with not_seeded("guide", lvm):
            guide_trace = run(lvm.guide, "guide", batch)
        with not_seeded("model", lvm):
            model_trace, enumerated_left_of = run_once(indices(lvm.model), batch, guide_trace)
        model = sites_of(model_trace)
        guide = guide_sites(guide_trace)
        check_indices(lvm, indices, guide_trace)
        check_plates(model_trace, guide_trace)
        check_latents(lvm, model, guide)
        shapes = []
        for part, sites in (("model", model), ("guide", guide)):
            for site in sites.values():
                value = log_prob(part, site)
                check_shape(part, site, value)
                shapes.append(value.dim())
        plate_found = data_plate(
            lvm.model, batch, [s for s in model.values() if s["is_observed"]], plate
        )
        latents = {n: s for n, s in model.items() if not s["is_observed"]}

        def guide_again() -> Sites:
            with preserved_rng(Data(batch).device):
                return guide_sites(run(lvm.guide, "guide", batch, _subsamples(guide_trace)))

        def density(values: Any) -> Sites:
            with Put({n: v[None] for n, v in values.items()}, None, None):
                return sites_of(run_once(lvm.model, batch, _subsamples(guide_trace))[0])

        degenerate = degenerate_latents(lvm, latents, guide, guide_again)
        masked, flat = masked_latents(lvm, model, guide, density, guide_again)
    found = _read_layout(plate_found, model, guide, [model_trace, guide_trace])
    return found._replace(
        nesting=max(found.nesting, enumerated_left_of, *shapes),
        degenerate=degenerate,
        masked=masked,
        improper=tuple({*found.improper, *flat}),
    )


def _subsamples(trace: Any) -> poutine.Trace:
    """The part of a trace that holds the plates' indices."""
    kept = poutine.Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site_is_subsample(site):
            kept.add_node(name, **site)
    return kept


def _read_layout(plate: Any, model: Sites, guide: Sites, traces: list[Any]) -> Layout:
    observed = {n: s for n, s in model.items() if s["is_observed"]}
    latents = {n: s for n, s in model.items() if not s["is_observed"]}
    drawn = {
        n: s
        for t in traces
        for n, s in t.nodes.items()
        if s["type"] == "sample" and site_is_subsample(s)
    }
    inside = [s for s in observed.values() if plate is not None and _stands_in(s, plate.name)]
    scale = (inside or list(observed.values()))[0]["scale"]
    return Layout(
        nesting=nesting_of(model, guide),
        data_plate=plate.name if plate else None,
        data_dim=plate.dim if plate else None,
        num_data=_size(plate, inside) if plate else 1,
        full_size=_full_size(plate, inside) if plate else 1,
        local=plate is not None
        and all(_stands_in(s, plate.name) for s in [*latents.values(), *guide.values()]),
        scale=float(scale.mean()) if isinstance(scale, Tensor) else float(scale),
        model_scales={n: s["scale"] for n, s in model.items()},
        guide_scales={n: s["scale"] for n, s in guide.items()},
        tempered=_tempered(model),
        latents=tuple(n for n in latents if n in guide),
        observed=tuple(observed),
        sites={
            f"{part} {n}": _in_words(s)
            for part, sites in (("model", model), ("guide", guide))
            for n, s in sites.items()
        },
        families={n: _family(s) for n, s in observed.items()},
        enumerated=tuple(n for n, s in latents.items() if n not in guide and enumerable(s)),
        degenerate=(),
        improper=tuple(n for n, s in latents.items() if family(s["fn"]) == "ImproperUniform"),
        masked=(),
        data_axes={
            n: p + 1 for n in latents if n in guide and (p := place(guide[n], plate)) is not None
        },
        subsample={
            n: s
            for n, s in drawn.items()
            if s["fn"].subsample_size is not None and s["fn"].subsample_size < s["fn"].size
        },
        ways=Ways(),
    )


def _tempered(model: Sites) -> dict[str, float]:
    """What ``poutine.scale`` multiplies the log-density of each site by; empty if that is one
    factor for all, which leaves the posterior alone.
    """
    factors = {}
    for name, site in model.items():
        by_plates = math.prod(
            f.full_size / f.size for f in site["cond_indep_stack"] if f.full_size and f.size
        )
        factors[name] = float(torch.as_tensor(site["scale"]).double().mean()) / by_plates
    return (
        factors
        if any(not math.isclose(f, g, rel_tol=1e-6) for f, g in pairwise(factors.values()))
        else {}
    )


def _size(plate: Any, sites: Iterable[Any]) -> int:
    """The size of a plate; where it was made without one, that of the sites within it."""
    inside = [s["fn"].batch_shape for s in sites if _stands_in(s, plate.name)]
    return (
        plate.size
        if plate.size > 0
        else max([shape[plate.dim] for shape in inside if len(shape) >= -plate.dim], default=1)
    )


def _full_size(plate: Any, sites: Iterable[Any]) -> int:
    """How many there are in all by a plate that holds some of them; where it says nothing, as many
    as it holds.
    """
    return plate.full_size if plate.full_size and plate.full_size > 0 else _size(plate, sites)


def _sizes(sites: Iterable[Any]) -> dict[str, tuple[int, int]]:
    """The size and the full size of every plate by name."""
    sites = list(sites)
    frames = {f.name: f for s in sites for f in s["cond_indep_stack"] if f.vectorized}
    return {n: (_size(f, sites), f.full_size) for n, f in frames.items()}


def _family(site: Any) -> str:
    name, mask = family(site["fn"]).removeprefix("Independent"), mask_of(site)
    return f"{name} in part, mask {mask}" if mask else name


def place(site: Any, plate: Any) -> int | None:
    """Where a plate stands among a site's own, from the left, as ``strip`` leaves them; None if
    the site is outside it.
    """
    if plate is None or not _stands_in(site, plate.name):
        return None
    return sorted(own_dims(site)).index(plate.dim)


def _in_words(site: Any) -> str:
    plates = ", ".join(sorted(f.name for f in site["cond_indep_stack"]))
    return (
        f"{family(site['fn']).removeprefix('Independent')} "
        f"{tuple(site['fn'].event_shape)}{f' in {plates}' if plates else ''}"
    )


def _stands_in(site: Any, plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def data_plate(model: Any, batch: Any, observed: list[Any], name: str | None = None) -> Any:
    """The plate over the data, or None: that called `name`, else that of the batch's size, of
    those around every observed site.

    Raises:
        ContractError: several plates are of the batch's size, and which grows with it cannot be
            found out.
    """
    common = (
        [f for f in observed[0]["cond_indep_stack"] if f.vectorized and f.name != "_monte_carlo"]
        if observed
        else []
    )
    for site in observed[1:]:
        common = [f for f in common if _stands_in(site, f.name)]
    if name is not None:
        return next((f for f in common if f.name == name), None)
    lengths = {t.shape[0] for t in tensors_of(batch) if t.dim()}
    matching = [f for f in common if {_size(f, observed), f.full_size} & lengths]
    if len(matching) > 1:
        matching = _growing(model, batch, matching, observed)
    return next(iter(matching or common), None)


def _growing(model: Any, batch: Any, plates: list[Any], observed: list[Any]) -> list[Any]:
    """Which of several plates of the batch's size grows with it, or, if that cannot be seen, is
    along the first axis of observed tensors.
    """
    data, grown = Data(batch), []
    if data.divisible:
        longer = data.subset(torch.arange(-1, len(data)).clamp(min=0)).x  # its first datum twice
        with preserved_rng(data.device), suppress(ContractError):
            before, after = (
                _sizes(sites_of(run_once(model, x)[0]).values()) for x in (batch, longer)
            )
            grown = [f for f in plates if f.name in after and after[f.name] != before[f.name]]
    grown = grown or [f for f in plates if f.name == "data"]
    if not grown:
        given = {id(t) for t in tensors_of(batch)}
        first = {s["fn"].event_dim - s["value"].dim() for s in observed if id(s["value"]) in given}
        grown = [f for f in plates if first == {f.dim}]
    if len(grown) != 1:
        raise ContractError(
            f"The plates {' and '.join(repr(f.name) for f in plates)} are all of the batch's "
            "size, so which of them is over the data "
            'cannot be seen: call that one "data".'
        )
    return grown


def held_still(layout: Layout) -> poutine.Trace | None:
    """A trace that holds the plates' random subsamples still, so that every pass sees the same
    data.
    """
    if not layout.subsample:
        return None
    trace = poutine.Trace()
    for name, site in layout.subsample.items():
        trace.add_node(name, **site)
    return trace
