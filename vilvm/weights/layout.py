"""The layout of a pair on a batch: its plates, its latents, its scale.

One run of the pair finds it.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from vilvm._runtime.random import preserved_rng
from vilvm._runtime.unchanged import not_seeded
from vilvm.data.data import Data
from vilvm.lvm import (
    LatentVariableModel,
    check_contract,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._conditioning import at_draw
from vilvm.weights._contract import (
    check_latents,
    check_plates,
    check_shape,
    enumerable,
)
from vilvm.weights._data_plate import (
    find_data_plate,
    in_plate,
    plate_axis,
    read_data_plate,
)
from vilvm.weights._per_datum import PlateIndices, check_indices, check_known
from vilvm.weights._sites import (
    Sites,
    deterministic_of,
    family,
    latents_of,
    log_prob,
    mask_digest,
    nesting_of,
    observed_of,
    sites_of,
    subsamples_of,
)
from vilvm.weights._supports import (
    MaskedLatents,
    degenerate_latents,
    guide_sites,
    is_deterministic,
    masked_latents,
)
from vilvm.weights._traces import run, run_once, trace_of
from vilvm.weights._vectorisation import Vectorisation

__all__ = ["Layout", "find_layout"]


class Layout(NamedTuple):
    """The layout of a pair on a batch, found by one run of it.

    Arguments:
        nesting: the number of tensor dimensions that the plates take.
        data_plate: the name of the plate over the data, or None.
        data_dim: its dimension (negative, counted from the right of the batch shape), or None.
        num_data: data in the plate; 1 without one.
        full_size: the size of the full data set that the plate declares; 1 without one.
        local: whether every latent stands in the data plate, so that weights are per datum.
        scale: the factor on the observed sites: the ratio of a Pyro loss to the batch's sum.
        model_scales: the factor on each site of the model; one number, or a tensor.
        guide_scales: the factor on each site of the guide.
        tempered: the mean factor that ``poutine.scale`` puts on each site of the model; empty if
            all sites have the same factor.
        latents: those that the guide draws, in the model's order.
        observed: names, in the model's order.
        sites: by site of model and guide, its distribution, event shape and plates, as text.
        families: by observed site, the name of its distribution, and its mask if it has one.
        enumerated: latents that the model marks for parallel enumeration and the guide leaves out,
            which are summed over.
        derived: the ``pyro.deterministic`` sites of the model.
        degenerate: latents that the guide puts on one point, where it has no density.
        deterministic: whether the guide puts every latent on one point; discrete ones have a
            probability there, which is 1.
        improper: latents whose prior is flat and so is not a probability density.
        masked: latents with entries that the model masks and the guide scores; these entries are
            marginalised (``vilvm.weights._supports``).
        data_axes: by latent, the dimension of its draws that is over the data: 1, unless another
            plate stands left of the data plate; latents shared by the data are left out.
        subsample: the sites of the plates that subsample their data at random.
        vectorisation: the known strategies for passes at many samples
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
    derived: tuple[str, ...]
    degenerate: tuple[str, ...]
    deterministic: bool
    improper: tuple[str, ...]
    masked: tuple[str, ...]
    data_axes: dict[str, int]
    subsample: dict[str, Any]
    vectorisation: Vectorisation

    @property
    def sample_dim(self) -> int:
        """The dimension of the plate over samples: left of every plate of the model."""
        return -1 - self.nesting

    def samples(self, num_samples: int | None) -> tuple[int, int] | None:
        """Size and dimension of the plate over samples; None for a single-sample run."""
        if num_samples is None:
            return None
        return num_samples, self.sample_dim

    def is_in_data(self, site: Any) -> bool:
        """Whether a site stands in the plate over the data."""
        return self.data_plate is not None and in_plate(site, self.data_plate)

    def data_axis(self, site: Any) -> int | None:
        """The dimension of a site's draws that is over the data, after that of samples, or None.

        The site is of a single-sample run.
        """
        for frame in site["cond_indep_stack"]:
            if frame.name == self.data_plate:
                return 1 + plate_axis(site, frame)
        return None

    def fixed_subsample(self) -> poutine.Trace | None:
        """A trace to replay that fixes the plates' random subsamples, or None.

        With it, every pass sees the same data.
        """
        if not self.subsample:
            return None
        return trace_of(self.subsample)


def find_layout(
    lvm: LatentVariableModel,
    batch: Any,
    validate: bool = True,
    plate: str | None = None,
    *,
    any_data: bool = False,
) -> Layout:
    """Runs the pair once on `batch`, checks it, and returns its layout.

    The pair runs in evaluation mode, so that batch statistics do not change.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        validate: whether Pyro validates parameters and values.
        plate: the name of the plate over the data, if it is known from another batch; by default
            the plate of the batch's size.
        any_data: whether the batch may hold other data than those that a guide with parameters per
            datum was fitted to. Correct only if the guide's draws are not used.

    Returns:
        Layout.

    Raises:
        ContractError: the pair cannot run on this batch, changes it in place, seeds torch's
            generators, or observes nothing; its latents do not match; a log-density has dimensions
            that no plate declares; several plates may be the one over the data; or an autoguide
            draws its own subsample.
        NotApplicable: the guide has parameters per datum, and the batch holds other data.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import find_layout
        >>> layout = find_layout(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6))
        >>> layout.latents, layout.num_data, layout.local
        (('z',), 4, True)
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
        first = _run_pair(lvm, batch)
        nesting = _check_shapes(first)
        frame = find_data_plate(
            lvm.model, batch, list(observed_of(first.model).values()), plate
        )
        again = _Again(lvm, batch, first.guide_trace)
        latents = latents_of(first.model)
        degenerate = degenerate_latents(lvm, latents, first.guide, again.guide)
        masked = masked_latents(
            lvm, first.model, first.guide, again.model_at, again.guide
        )
    return _read_layout(first, frame, nesting, degenerate, masked)


class _FirstRun(NamedTuple):
    """The first run of a pair.

    Arguments:
        model_trace, guide_trace: its traces.
        model, guide: their sites.
        nesting: plate dimensions of a model that runs only under enumeration; else 0.
    """

    model_trace: poutine.Trace
    guide_trace: poutine.Trace
    model: Sites
    guide: Sites
    nesting: int


def _run_pair(lvm: LatentVariableModel, batch: Any) -> _FirstRun:
    """Runs guide and model, and checks that they agree on plates and latents."""
    indices = PlateIndices()
    with not_seeded("guide", lvm):
        guide_trace = run(lvm.guide, "guide", batch)
    with not_seeded("model", lvm):
        model_trace, nesting = run_once(indices(lvm.model), batch, guide_trace)
    model, guide = sites_of(model_trace), guide_sites(guide_trace)
    check_indices(lvm, indices, guide_trace)
    check_plates(model_trace, guide_trace)
    check_latents(lvm, model, guide)
    return _FirstRun(model_trace, guide_trace, model, guide, nesting)


def _check_shapes(first: _FirstRun) -> int:
    """Checks the shape of every log-density; returns the dimensions that the plates take."""
    nesting = max(nesting_of(first.model, first.guide), first.nesting)
    for part, sites in (("model", first.model), ("guide", first.guide)):
        for site in sites.values():
            density = log_prob(part, site)
            check_shape(part, site, density)
            nesting = max(nesting, density.dim())
    return nesting


class _Again:
    """Further runs of a pair, with the subsamples of its first run."""

    def __init__(
        self, lvm: LatentVariableModel, batch: Any, guide_trace: poutine.Trace
    ):
        self.lvm, self.batch = lvm, batch
        self.subsamples = trace_of(subsamples_of(guide_trace))

    def guide(self) -> Sites:
        """The guide, with other draws."""
        with preserved_rng(Data(self.batch).device):
            return guide_sites(
                run(self.lvm.guide, "guide", self.batch, self.subsamples)
            )

    def model_at(self, latents: Mapping[str, Tensor]) -> Sites:
        """The model at these latents."""
        with at_draw({name: value[None] for name, value in latents.items()}):
            return sites_of(run_once(self.lvm.model, self.batch, self.subsamples)[0])


# Reading
# --------------------------------------------------------------------------------------------


def _read_layout(
    first: _FirstRun,
    frame: Any,
    nesting: int,
    degenerate: tuple[str, ...],
    masked: MaskedLatents,
) -> Layout:
    observed, latents = observed_of(first.model), latents_of(first.model)
    drawn = [name for name in latents if name in first.guide]
    plate = read_data_plate(first.model, first.guide, frame)
    return Layout(
        nesting=nesting,
        data_plate=plate.name,
        data_dim=plate.dim,
        num_data=plate.num_data,
        full_size=plate.full_size,
        local=plate.local,
        scale=_mean(plate.scale),
        model_scales={name: site["scale"] for name, site in first.model.items()},
        guide_scales={name: site["scale"] for name, site in first.guide.items()},
        tempered=_tempered(first.model),
        latents=tuple(drawn),
        observed=tuple(observed),
        sites=_as_text("model", first.model) | _as_text("guide", first.guide),
        families={name: _family(site) for name, site in observed.items()},
        enumerated=_enumerated(latents, first.guide),
        derived=tuple(deterministic_of(first.model_trace)),
        degenerate=degenerate,
        deterministic=is_deterministic(latents, first.guide),
        improper=tuple({*_improper(latents), *masked.flat}),
        masked=masked.marginalised,
        data_axes=_data_axes({name: first.guide[name] for name in drawn}, frame),
        subsample=_random_subsamples(first),
        vectorisation=Vectorisation(),
    )


def _mean(scale: Any) -> float:
    if isinstance(scale, Tensor):
        return float(scale.mean())
    return float(scale)


def _tempered(model: Sites) -> dict[str, float]:
    """The mean factor of ``poutine.scale`` on the log-density of each site.

    Empty if all have the same factor, which does not change the posterior.
    """
    factors = {}
    for name, site in model.items():
        sizes = [f for f in site["cond_indep_stack"] if f.full_size and f.size]
        by_plates = math.prod(frame.full_size / frame.size for frame in sizes)
        factors[name] = (
            float(torch.as_tensor(site["scale"]).double().mean()) / by_plates
        )
    if all(math.isclose(f, g, rel_tol=1e-6) for f, g in pairwise(factors.values())):
        return {}
    return factors


def _enumerated(latents: Sites, guide: Sites) -> tuple[str, ...]:
    return tuple(
        n for n, site in latents.items() if n not in guide and enumerable(site)
    )


def _improper(latents: Sites) -> Iterable[str]:
    return (n for n, site in latents.items() if family(site["fn"]) == "ImproperUniform")


def _data_axes(latents: Sites, frame: Any) -> dict[str, int]:
    if frame is None:
        return {}
    inside = {
        name: site for name, site in latents.items() if in_plate(site, frame.name)
    }
    return {name: 1 + plate_axis(site, frame) for name, site in inside.items()}


def _random_subsamples(first: _FirstRun) -> Sites:
    sites = subsamples_of(first.model_trace) | subsamples_of(first.guide_trace)
    return {name: site for name, site in sites.items() if _is_random(site["fn"])}


def _is_random(fn: Any) -> bool:
    return fn.subsample_size is not None and fn.subsample_size < fn.size


def _family(site: Any) -> str:
    name, mask = family(site["fn"]).removeprefix("Independent"), mask_digest(site)
    if mask:
        return f"{name} in part, mask {mask}"
    return name


def _as_text(part: str, sites: Sites) -> dict[str, str]:
    return {f"{part} {name}": _site_as_text(site) for name, site in sites.items()}


def _site_as_text(site: Any) -> str:
    name = family(site["fn"]).removeprefix("Independent")
    text = f"{name} {tuple(site['fn'].event_shape)}"
    plates = ", ".join(sorted(frame.name for frame in site["cond_indep_stack"]))
    if plates:
        return f"{text} in {plates}"
    return text
