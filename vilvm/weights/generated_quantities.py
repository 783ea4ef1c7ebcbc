"""The model run again at given latents, nothing observed: what else it would have said.

Given draws z₁ … z_S, one pass under a plate over samples draws x̃ₛ ~ p(x | zₛ) for every observed
site, which are predictive draws of the posterior if the z are its, and of the prior if none is
given, and reads off every ``pyro.deterministic`` value f(zₛ).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to

from vilvm._runtime.argument_checks import check_number
from vilvm._runtime.random import preserved_rng
from vilvm.data.tensors import tensors_of
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, module_parameters
from vilvm.weights._enumeration import check_drawable
from vilvm.weights._traces import (
    Put,
    Unobserved,
    family,
    own_densities,
    own_dims,
    run,
    strip,
    was_observed,
)
from vilvm.weights._vectorisation import Pass, Values, at_samples
from vilvm.weights.checks import check_batch
from vilvm.weights.layout import Layout, find_layout, held_still

__all__ = ["Replay", "replay"]


class Replay(NamedTuple):
    """What a model says at given latents, by site; S is num_samples.

    Arguments:
        latents: those of the model, as given or drawn from the prior, shape (S, *plates, *event).
        observed: new draws of the observed sites, shape (S, *plates, *event).
        deterministics: values of ``pyro.deterministic``, shape (S, *plates, *event).
        recorded: the values that the observed sites have in this batch, shape (*plates, *event).
        data_axes: by site, which dimension of its draws is that of the data (samples are dimension
            0); none if the data share it.
    """

    latents: dict[str, Tensor]
    observed: dict[str, Tensor]
    deterministics: dict[str, Tensor]
    recorded: dict[str, Tensor]
    data_axes: dict[str, int]


@torch.no_grad()
def replay(
    lvm: LatentVariableModel,
    batch: Any,
    latents: Mapping[str, Tensor] | None = None,
    *,
    num_samples: int | None = None,
    layout: Layout | None = None,
) -> Replay:
    """Runs the model once at all draws of its latents, with nothing observed.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with; the model may read more of it than what it observes.
        latents: draws by latent, as ``posterior`` returns them: shape (S, num_data, ...), or (S,
            ...) if shared by the data. A latent that is not among them is drawn from its prior.
        num_samples: S, where no latent is given.
        layout: the layout of this very batch; found by a run of the pair if it is not given.

    Returns:
        Replay.

    Raises:
        ContractError: the pair breaks the contract, a latent is unknown or of another shape, or a
            prior cannot be drawn from.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.generated_quantities import replay
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> replay(lvm, x, vilvm.posterior(lvm, x, num_samples=10)).observed["x"].shape
        torch.Size([10, 4, 6])
    """
    check_batch(batch)
    given = dict(latents or {})
    sizes = {len(v) for v in given.values()} | (
        {num_samples} if num_samples is not None else set()
    )
    if len(sizes) != 1:
        raise ContractError(
            f"replay: the latents hold {sorted(sizes)} draws; give as many of each."
            if sizes
            else "replay: no latent is given, so say how many draws to make: num_samples."
        )
    (samples,) = sizes
    samples = check_number("num_samples", samples)
    layout = find_layout(lvm, batch, any_data=True) if layout is None else layout
    unknown = sorted(set(given) - {*layout.latents, *layout.enumerated})
    if unknown:
        raise ContractError(
            f"replay: {type(lvm).__name__} has no latent {unknown[0]!r}; it has "
            f"{list(layout.latents)}."
        )
    with module_parameters(lvm), evaluation_mode(lvm):
        if given and set(layout.enumerated) - set(given):
            check_drawable("replay", lvm, batch, given, layout.nesting)
        single = _run(lvm, batch, {n: v[:1] for n, v in given.items()}, None, layout)
        values = at_samples(
            lvm, batch, samples, _replay_pass(lvm, layout, single), given, ways=layout.ways
        )
        with preserved_rng(tensors_of(batch)[0].device):
            moved = {n: strip(_moved(single[n]), single[n], 1, layout.nesting) for n in given}
            other = _run(lvm, batch, moved, None, layout)
    moving = {n for n, s in single.items() if not torch.equal(s["value"], other[n]["value"])}
    result = Replay({}, {}, {}, {}, {})
    for name, site in single.items():
        deterministic = site["infer"].get("_deterministic")
        drawn = (
            result.deterministics
            if deterministic
            else result.observed
            if was_observed(site)
            else result.latents
        )
        drawn[name] = values["deterministics" if deterministic else "sites"][name]
        if was_observed(site) and not deterministic:
            # one number may stand for all of a plate
            recorded = site["infer"]["obs"].expand(site["fn"].shape())
            result.recorded[name] = strip(recorded, site, 1, layout.nesting)[0]
        axis = (
            _deterministic(site, None, 1, layout, name in moving)[1]
            if deterministic
            else layout.data_axis(site)
        )
        if axis is not None:
            result.data_axes[name] = axis
    return result


def _replay_pass(lvm: LatentVariableModel, layout: Layout, single: dict[str, Any]) -> Pass:
    """A run of the model at given latents: the draws of its sites, and its deterministic values."""

    def replayed(batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        sites, size = _run(lvm, batch, given, num_samples, layout), num_samples or 1
        made = {n: s for n, s in sites.items() if s["infer"].get("_deterministic")}
        values = {
            n: strip(s["value"], s, size, layout.nesting)
            for n, s in sites.items()
            if n not in made
        }
        return {
            "sites": values,
            "deterministics": {
                n: _deterministic(s, single[n]["value"].shape, size, layout)[0]
                for n, s in made.items()
            },
            "drawn": {n: v for n, v in values.items() if family(sites[n]["fn"]) != "Delta"},
            "densities": own_densities(
                "model", {n: sites[n] for n in values}, size, layout.nesting
            ),
        }

    return Pass(replayed, "replay")


def _run(
    lvm: LatentVariableModel,
    batch: Any,
    given: Mapping[str, Tensor],
    num_samples: int | None,
    layout: Layout,
) -> dict[str, Any]:
    """The sites of the model by name, ``pyro.deterministic`` included; without factors and the
    plates' own.
    """

    def half(batch: Any) -> Any:
        with Put(given, num_samples, layout.nesting), Unobserved():
            return lvm.model(batch)

    trace = run(half, "model", batch, held_still(layout), samples=layout.samples(num_samples))
    nodes: dict[str, Any] = dict(trace.nodes)
    return {
        n: s
        for n, s in nodes.items()
        if s["type"] == "sample" and family(s["fn"]) not in ("_Subsample", "Unit")
    }


def _moved(site: Any) -> Tensor:
    """Another value near that of a site, within its support; the same where it has no neighbours."""
    try:
        bijection = biject_to(site["fn"].support)
    except NotImplementedError:
        return site["value"]
    return bijection(1.001 * bijection.inv(site["value"]) + 0.001)


def _deterministic(
    site: Any, single: torch.Size | None, num_samples: int, layout: Layout, moves: bool = False
) -> tuple[Tensor, int | None]:
    """A deterministic value as (S, *plates, *event), and its axis of the data: it rarely says
    which of its dimensions are of an event.

    Arguments:
        site: of a run under a plate over samples, or of a single-sample run.
        single: the shape that the value has in a single-sample run; None if this is one. A value
            of that shape does not depend on the draws; any other has their dimension left of those
            of the plates.
        num_samples, layout: of the run.
        moves: whether the value depends on the latents.
    """
    value, nesting = site["value"], layout.nesting
    constant = single is None or value.shape == single
    if constant:
        value = value.reshape((1,) * (nesting - value.dim()) + value.shape)
        value = value.expand(num_samples, *value.shape)
    elif value.dim() <= nesting:
        raise ContractError(
            f"The deterministic value {site['name']!r} has shape {tuple(value.shape)} under "
            f"{num_samples} samples, whose dimension it should keep on the left: "
            "reduce over dimensions counted from the right."
        )
    value = value.expand(num_samples, *value.shape[1:])
    own, axis = own_dims(site), None
    keep = [d for d in range(-nesting, 0) if d in own or value.shape[1 + nesting + d] > 1]
    if (
        layout.data_dim in keep
        and (layout.data_dim in own or moves)
        and value.shape[1 + nesting + layout.data_dim] == layout.num_data
    ):
        axis = 1 + keep.index(layout.data_dim)
    shape = [value.shape[1 + nesting + d] for d in keep]
    return value.reshape(num_samples, *shape, *value.shape[1 + nesting :]), axis
