"""Runs of a pair for a training step, whose draws may get scaled gradients."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from vilvm.lvm import ContractError
from vilvm.weights._data_plate import (
    DataPlate,
    find_data_plate,
    in_plate,
    read_data_plate,
)
from vilvm.weights._sites import (
    Sites,
    family,
    latents_of,
    observed_of,
    sites_of,
    subsamples_of,
)
from vilvm.weights._supports import guide_sites
from vilvm.weights._traces import run, trace_of

__all__ = ["Half", "ParticleRun", "Plates", "run_particles"]

Half = Callable[[Any], Any]


class Plates(NamedTuple):
    """The plates of a run.

    Arguments:
        nesting: the dimensions that they take.
        data: the plate over the data.
    """

    nesting: int
    data: DataPlate

    @property
    def data_dim(self) -> int | None:
        """The dimension of the data plate."""
        return self.data.dim

    def is_in_data(self, site: Any) -> bool:
        """Whether a site stands in the data plate."""
        return self.data.name is not None and in_plate(site, self.data.name)


class ParticleRun(NamedTuple):
    """A run of guide and model: all particles under a plate, or one particle without a plate.

    Arguments:
        model, guide: the sites.
        draws: what the model receives from the guide, by site: the draws as tensors of their own.
        subsample: the indices of plates that subsample at random.
        plates: of both.
        size: particles under the plate; None without one.
        guide_at: runs the guide again, at given values of its sites.
    """

    model: Sites
    guide: Sites
    draws: dict[str, Tensor]
    subsample: Sites
    plates: Plates
    size: int | None
    guide_at: Callable[[Mapping[str, Tensor]], Sites]

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiplies the gradients of the draws by a factor, shape (S, N) or (S,)."""
        for name, draw in self.draws.items():
            if draw.requires_grad:
                placed = self._placed(factor, self.guide[name]["fn"].event_dim)
                draw.register_hook(_times(placed, draw.dim()))

    def _placed(self, factor: Tensor, event_dim: int) -> Tensor:
        """A factor in the dimensions of a draw: particles, plates, event."""
        nesting, data_dim = self.plates.nesting, self.plates.data_dim
        shape = [len(factor)] + [1] * (nesting + event_dim)
        if factor.dim() == 2 and data_dim is not None:
            shape[1 + nesting + data_dim] = factor.shape[1]
        return factor.reshape(shape)


def _times(factor: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    while factor.dim() > dim:  # a single run has no dimension of particles
        factor = factor[0]
    return lambda gradient: gradient * factor.to(gradient)


def run_particles(
    pair: tuple[Half, Half],
    batch: Any,
    size: int | None,
    nesting: int,
    subsample: Sites,
) -> ParticleRun:
    """Runs guide and model once.

    Arguments:
        pair: model and guide, each called with the batch.
        batch: their argument.
        size: particles under a plate; None for one particle without a plate.
        nesting: dimensions that the plates of the pair take.
        subsample: indices that plates must take.
    """
    model, guide = pair
    samples = None if size is None else (size, -1 - nesting)
    fixed = trace_of(subsample)
    guide_trace = run(guide, "guide", batch, fixed, samples=samples)
    guide_part = guide_sites(guide_trace)
    draws = {n: s["value"].view_as(s["value"]) for n, s in guide_part.items()}
    drawn = trace_of(_at_values(guide_part, draws) | subsamples_of(guide_trace))
    model_trace = run(model, "model", batch, drawn, fixed, samples=samples)
    model_part = sites_of(model_trace)
    _check_latents(model_part, guide_part)
    subsample = subsamples_of(model_trace) | subsamples_of(guide_trace)
    frame = find_data_plate(model, batch, list(observed_of(model_part).values()))

    def guide_at(values: Mapping[str, Tensor]) -> Sites:
        given = trace_of(_at_values(guide_part, values) | subsample)
        return guide_sites(run(guide, "guide", batch, given, samples=samples))

    return ParticleRun(
        model=model_part,
        guide=guide_part,
        draws=draws,
        subsample=subsample,
        plates=Plates(nesting, read_data_plate(model_part, guide_part, frame)),
        size=size,
        guide_at=guide_at,
    )


def _at_values(sites: Sites, values: Mapping[str, Tensor]) -> Sites:
    return {name: {**sites[name], "value": value} for name, value in values.items()}


def _check_latents(model: Sites, guide: Sites) -> None:
    """Raises ContractError unless the guide draws every latent by a reparameterised draw."""
    if len(latents_of(model)) == len(model):
        raise ContractError(
            "The model observes nothing; give one pyro.sample of it obs=batch."
        )
    for name in latents_of(model):
        if name not in guide:
            raise ContractError(
                f"The guide does not sample latent {name!r}: sample it there, or sum over it with "
                "TraceEnum_ELBO(max_plate_nesting=...)."
            )
    for name, site in guide.items():
        if not site["is_observed"] and not site["fn"].has_rsample:
            raise ContractError(
                f"The guide draws {name!r} from a {family(site['fn'])}, which is not "
                "reparameterised, so its gradient does not pass through the draw: train with "
                "TraceGraph_ELBO() or ReweightedWakeSleep()."
            )
