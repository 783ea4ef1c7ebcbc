"""Batches that the model itself has made, with the latents that made them: where the truth is known."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm.data import Data, kept_generators, map_tensors, tensors_of
from vilvm.lvm import ContractError, LatentVariableModel, module_parameters
from vilvm.weights.contract import check_number
from vilvm.weights.draws import sample
from vilvm.weights.structure import layout
from vilvm.weights.traces import run, sites_of

__all__ = ["Simulation", "put_in", "simulate"]


class Simulation(NamedTuple):
    """One batch from the model.

    Arguments:
        batch: what model and guide are called with, drawn data in it.
        latents: those that the data were drawn from, as ``posterior`` returns them, with one sample.
    """

    batch: Any
    latents: dict[str, Tensor]


@torch.no_grad()
def simulate(lvm: LatentVariableModel, num_simulations: int, *, like: Any = None, batch_size: int = 1000) -> list[Simulation]:
    """Draws (z, x) ~ p(z, x), in batches that model and guide can be called with.

    Where every latent belongs to one datum, a simulation is one datum, and a batch holds `batch_size` of them; where the data share a latent, a
    simulation is a whole batch like `like`.

    Arguments:
        lvm: the model and guide.
        num_simulations: how many to draw.
        like: a batch, for a model that reads more of it than its length; the observed values in it are those that are replaced.
        batch_size: data a batch, where the model needs no `like`.

    Raises:
        ContractError: the model reads its batch, and none is given; or what it observes is not, as it is, part of the batch.

    Example:
        >>> from models.vae import VAE
        >>> from vilvm.weights import simulate
        >>> tuple(len(s.batch) for s in simulate(VAE(data_dim=6, latent_dim=2), 5, batch_size=3))
        (3, 2)
    """
    check_number("num_simulations", num_simulations)
    check_number("batch_size", batch_size)
    if like is None:
        sizes = [min(batch_size, num_simulations - i) for i in range(0, num_simulations, batch_size)]
        drawn = [sample(lvm, size) for size in sizes]
        return [_as_batch(lvm, values) for values in drawn]
    plan = layout(lvm, like)
    count = -(-num_simulations // plan.num_data) if plan.local else num_simulations
    values = sample(lvm, count, like=like)
    each = [{n: v[i] for n, v in values.items()} for i in range(count)]
    found = [Simulation(put_in(lvm, like, drawn), {n: drawn[n].unsqueeze(0) for n in plan.latents}) for drawn in each]
    if plan.local and num_simulations % plan.num_data and isinstance(like, Tensor):
        rest = num_simulations - (count - 1) * plan.num_data
        last = found[-1]
        found[-1] = Simulation(last.batch[:rest], {n: _first(v, rest, plan.data_axes[n]) for n, v in last.latents.items()})
    return found


def _first(value: Tensor, count: int, axis: int) -> Tensor:
    return value.narrow(axis, 0, count)


def _as_batch(lvm: LatentVariableModel, values: dict[str, Tensor]) -> Simulation:
    """Draws of a model that needs no batch: what it observes is the batch."""
    with module_parameters(lvm):
        sites = sites_of(run(lvm.model, "model", next(iter(values.values()))))
    observed = [n for n in values if n in sites and sites[n]["is_observed"]]
    if len(observed) != 1:
        raise ContractError(f"simulate: {type(lvm).__name__} observes {observed}; pass like=, a batch in which to put their draws.")
    batch = values[observed[0]]
    plan = layout(lvm, batch)
    if not plan.local:
        raise ContractError(
            f"simulate: {type(lvm).__name__} has a latent that its data share, so a simulation is a whole data set: pass like=, one of the size meant."
        )
    return Simulation(batch, {n: values[n].movedim(0, plan.data_axes[n] - 1).unsqueeze(0) for n in plan.latents})


def put_in(lvm: LatentVariableModel, batch: Any, values: Mapping[str, Tensor]) -> Any:
    """`batch` with other values of the observed sites, each put where the model finds its own.

    Arguments:
        lvm: the model and guide; the guide is not run.
        batch: what the model is called with.
        values: by observed site, each of the shape that it has in the batch; others are left alone.

    Raises:
        ContractError: what a site observes is not, as it is, one of the batch's tensors.
    """
    with module_parameters(lvm), kept_generators(Data(batch).device):
        sites = sites_of(run(lvm.model, "model", batch))
    new = batch
    for name in [n for n, s in sites.items() if s["is_observed"] and n in values]:
        old, put = sites[name]["value"], 0

        def replace(tensor: Tensor, old: Tensor = old, value: Tensor = values[name]) -> Tensor:
            nonlocal put
            same = tensor.data_ptr() == old.data_ptr() and tensor.shape == old.shape and tensor.stride() == old.stride()
            put += same
            return value.to(tensor.dtype).reshape(tensor.shape) if same else tensor

        new = map_tensors(replace, new)
        if put != 1:
            shapes = [tuple(t.shape) for t in tensors_of(batch)]
            raise ContractError(
                f"Site {name!r} observes a tensor of shape {tuple(old.shape)}, which is not, as it is, one of the batch's, {shapes}, so drawn data cannot "
                "be put in its place: pass it in the batch and observe it unchanged."
            )
    return new
