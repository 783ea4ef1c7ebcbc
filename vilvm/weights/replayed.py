"""The model run again at given latents, nothing observed: what else it would have said.

Given draws z₁ … z_S, one pass under a plate over samples draws x̃ₛ ~ p(x | zₛ) for every observed site, which are predictive draws of the
posterior if the z are its, and of the prior if none is given, and reads off every ``pyro.deterministic`` value f(zₛ).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, module_parameters
from vilvm.weights.contract import check_batch, check_number
from vilvm.weights.structure import Layout, held_still, layout
from vilvm.weights.traces import Unobserved, family, plate_dims, run, strip, was_observed

__all__ = ["Replay", "replay"]


class Replay(NamedTuple):
    """What a model says at given latents, by site; S is num_samples.

    Arguments:
        latents: those of the model, as given or drawn from the prior, shape (S, *plates, *event).
        observed: new draws of the observed sites, shape (S, *plates, *event).
        deterministics: values of ``pyro.deterministic``, shape (S, *plates, *event).
        recorded: the values that the observed sites have in this batch, shape (*plates, *event).
        data_axes: by site, which dimension of its draws is that of the data (samples are dimension 0); none if the data share it.
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
    plan: Layout | None = None,
) -> Replay:
    """Runs the model once at all draws of its latents, with nothing observed.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with; the model may read more of it than what it observes.
        latents: draws by latent, as ``posterior`` returns them: shape (S, num_data, ...), or (S, ...) if shared by the data. A latent that is
            not among them is drawn from its prior.
        num_samples: S, where no latent is given.
        plan: the layout of this very batch; found by a run of the pair if it is not given.

    Returns:
        Replay.

    Raises:
        ContractError: the pair breaks the contract, a latent is unknown or of another shape, or a prior cannot be drawn from.

    Example:
        >>> import torch, vilvm
        >>> from models.vae import VAE
        >>> from vilvm.weights.replayed import replay
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> replay(lvm, x, vilvm.posterior(lvm, x, num_samples=10)).observed["x"].shape
        torch.Size([10, 4, 6])
    """
    check_batch(batch)
    given = dict(latents or {})
    sizes = {len(v) for v in given.values()} | ({num_samples} if num_samples is not None else set())
    if len(sizes) != 1:
        raise ContractError(
            f"replay: the latents hold {sorted(sizes)} draws; give as many of each."
            if sizes
            else "replay: no latent is given, so say how many draws to make: num_samples."
        )
    (samples,) = sizes
    check_number("num_samples", samples)
    plan = layout(lvm, batch) if plan is None else plan
    unknown = sorted(set(given) - {*plan.latents, *plan.enumerated})
    if unknown:
        raise ContractError(f"replay: {type(lvm).__name__} has no latent {unknown[0]!r}; it has {list(plan.latents)}.")
    sites = _run(lvm, batch, given, samples, plan)
    deterministic = {n: s for n, s in sites.items() if s["infer"].get("_deterministic")}
    other = 1 if samples > 1 else 2  # another number of draws shows which values do not depend on them
    few = {n: v[:1].expand(other, *v.shape[1:]) for n, v in given.items()}
    probe = _run(lvm, batch, few, other, plan) if deterministic else {}
    result = Replay({}, {}, {}, {}, {})
    for name, site in sites.items():
        if name in deterministic:
            constant = site["value"].shape == probe[name]["value"].shape
            result.deterministics[name], axis = _deterministic(site, samples, plan, constant)
        else:
            drawn = result.observed if was_observed(site) else result.latents
            drawn[name], axis = strip(site["value"], site, samples, plan.nesting), plan.place(site)
        if was_observed(site):
            recorded = site["infer"]["obs"].expand(site["fn"].shape())  # one number may stand for all of a plate
            result.recorded[name] = strip(recorded, site, samples, plan.nesting)[0]
        if axis is not None:
            result.data_axes[name] = axis
    return result


def _run(lvm: LatentVariableModel, batch: Any, given: Mapping[str, Tensor], num_samples: int, plan: Layout) -> dict[str, Any]:
    """The sites of the model by name, ``pyro.deterministic`` included; without factors and the plates' own."""

    def half(batch: Any) -> Any:
        with _Given(given, plan.nesting), Unobserved():
            return lvm.model(batch)

    with module_parameters(lvm), evaluation_mode(lvm):
        trace = run(half, "model", batch, held_still(plan), samples=(num_samples, plan.sample_dim))
    nodes: dict[str, Any] = dict(trace.nodes)
    return {n: s for n, s in nodes.items() if s["type"] == "sample" and family(s["fn"]) not in ("_Subsample", "Unit")}


class _Given(Messenger):
    """Puts given draws in the place of latents, with a dimension of size one for each plate that a latent does not stand in."""

    def __init__(self, latents: Mapping[str, Tensor], nesting: int):
        super().__init__()
        self.latents, self.nesting = latents, nesting

    def _pyro_sample(self, msg: Any) -> None:
        value = self.latents.get(msg["name"])
        if value is None:
            return
        own, event = plate_dims(msg), msg["fn"].event_dim
        rank = self.nesting + event
        shape = msg["fn"].shape()[-rank:] if rank else ()
        shape = (1,) * (rank - len(shape)) + tuple(shape)
        shape = [n if dim >= -event or dim + event in own else 1 for dim, n in zip(range(-rank, 0), shape, strict=True)]
        if [n for n in value.shape[1:] if n > 1] != [n for n in shape if n > 1]:
            raise ContractError(
                f"replay: latent {msg['name']!r} was given draws of shape {tuple(value.shape[1:])}, and a draw of it has shape "
                f"{tuple(n for dim, n in zip(range(-rank, 0), shape, strict=True) if dim >= -event or dim + event in own)}."
            )
        msg["value"], msg["done"] = value.reshape(len(value), *shape), True


def _deterministic(site: Any, num_samples: int, plan: Layout, constant: bool) -> tuple[Tensor, int | None]:
    """A deterministic value as (S, *plates, *event), and its axis of the data: it rarely says which of its dimensions are of an event.

    What depends on the draws has their dimension left of those of the plates; what does not is the same for every draw.
    """
    value, nesting = site["value"], plan.nesting
    if constant:
        value = value.reshape((1,) * (nesting - value.dim()) + value.shape).expand(
            num_samples, *(1,) * (nesting - value.dim()), *value.shape
        )
    elif value.dim() <= nesting:
        raise ContractError(
            f"The deterministic value {site['name']!r} has shape {tuple(value.shape)} under {num_samples} samples, whose dimension it should keep on the left: "
            "reduce over dimensions counted from the right."
        )
    value = value.expand(num_samples, *value.shape[1:])
    own, axis = plate_dims(site), None
    keep = [d for d in range(-nesting, 0) if d in own or value.shape[1 + nesting + d] > 1]
    if (
        plan.data_dim in keep
        and (plan.data_dim in own or not constant)
        and value.shape[1 + nesting + plan.data_dim] == plan.num_data
    ):
        axis = 1 + keep.index(plan.data_dim)
    shape = [value.shape[1 + nesting + d] for d in keep]
    return value.reshape(num_samples, *shape, *value.shape[1 + nesting :]), axis
