"""A plain model and its data, made ready for inference.

The model runs in float64. Its continuous latents are packed into one unconstrained vector u, in
the order in which the model samples them, as Pyro's ``AutoContinuous`` packs them; enumerated
latents are summed over.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor, nn
from torch.distributions import biject_to

from vilvm.data.data import Data, as_data
from vilvm.guides import init_to_origin
from vilvm.inference._target import Target
from vilvm.lvm import ContractError, Pair, model_of, module_parameters
from vilvm.weights._sites import has_deltas, latents_of, sites_of
from vilvm.weights._traces import run_once
from vilvm.weights.log_joint import LogJoint
from vilvm.wrappers.in_float64 import InFloat64, double, float64

__all__ = [
    "check_global",
    "continuous",
    "has_derived_sites",
    "in_float64",
    "latent_sites",
    "own_model",
    "packed",
    "prepare_data",
    "prior_draws",
    "run_at_origin",
    "target_of",
]


def own_model(model: Any) -> Callable[[Any], Any]:
    """The callable p(x | z) p(z) of a function, a module or a pair, apart from the user's module.

    Raises:
        ContractError: `model` is none of these.
    """
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    if isinstance(owner, nn.Module):
        own = copy.deepcopy(owner).double()  # as the model runs in float64
        name = "model" if isinstance(owner, Pair) else getattr(model, "__name__", "")
        model = own if owner is model else getattr(own, name)
    return model_of(model, "infer")


def prepare_data(data: Any) -> Any:
    """The batch of all data, in float64."""
    return in_float64(data).x


def in_float64(data: Any) -> Data:
    """The data in float64 and in memory, their transform applied once."""
    fixed = as_data(data, dtype=torch.float64).loaded().fixed(0)
    return replace(fixed, x=double(fixed.x))


def latent_sites(model: Callable[[Any], Any], batch: Any) -> dict[str, Any]:
    """The latents that a run of the model samples, enumerated ones among them.

    Raises:
        ContractError: there is no latent to infer, or one is discrete and not enumerated.
    """
    sites = latents_of(sites_of(run_at_origin(model, batch)))
    name = _name(model)
    for latent, site in sites.items():
        if _is_discrete(site) and site["infer"].get("enumerate") is None:
            raise ContractError(
                f"infer: latent {latent!r} of {name} is discrete: sum over its values by "
                "infer={'enumerate': 'parallel'} in its sample statement, if they are few."
            )
    if all(_is_discrete(site) for site in sites.values()):
        raise ContractError(
            f"infer: {name} has no continuous latent, so there is no posterior to infer."
        )
    return sites


def has_derived_sites(model: Callable[[Any], Any], batch: Any) -> bool:
    """Whether a run of the model records values that follow from its latents."""
    return has_deltas(run_at_origin(model, batch))


def run_at_origin(
    model: Callable[[Any], Any],
    batch: Any,
    origin: Callable[[Any], Tensor] = init_to_origin,
) -> poutine.Trace:
    """One run of the model, its continuous latents at the origin.

    Arguments:
        model: see ``own_model``.
        batch: see ``prepare_data``.
        origin: the value of a site, in place of the origin.
    """
    holder = model if isinstance(model, nn.Module) else nn.Module()
    with (
        float64(),
        torch.random.fork_rng(devices=[]),
        pyro.validation_enabled(False),
        module_parameters(holder),
    ):
        torch.manual_seed(0)
        try:
            return run_once(InitMessenger(origin)(model), batch)[0]
        except ContractError as error:
            if "same dtype" in str(error) or "scalar type" in str(error):
                raise ContractError(
                    f"infer: {_name(model)} mixes float32 tensors of its own with the float64 of "
                    "inference: give these tensors as data, or make them float64."
                ) from error
            raise


def _name(model: Any) -> str:
    return getattr(model, "__name__", type(model).__name__)


def check_global(model: Callable[[Any], Any], batch: Any) -> None:
    """Raises ContractError unless the data are in a plate, and no latent is in it."""
    plates: dict[bool, set[str]] = {True: set(), False: set()}
    for site in sites_of(run_at_origin(model, batch)).values():
        names = {frame.name for frame in site["cond_indep_stack"]}
        plates[bool(site["is_observed"])] |= names
    if not plates[True] - plates[False]:
        raise ContractError(
            f"infer: batch_size needs a plate over the data of {_name(model)} that holds its "
            "observed sites and none of its latents; leave batch_size out to see all data at once."
        )


def _is_discrete(site: Any) -> bool:
    return site["fn"].support.is_discrete


def continuous(model: Callable[[Any], Any], sites: dict[str, Any]) -> Any:
    """The model as an autoguide sees it: without the latents that are enumerated."""
    hidden = [name for name, site in sites.items() if _is_discrete(site)]
    return poutine.block(model, hide=hidden) if hidden else model


def target_of(model: Callable[[Any], Any], batch: Any) -> Target:
    """The log-density of a model's latents given its data.

    Arguments:
        model: see ``own_model``.
        batch: see ``prepare_data``.

    Raises:
        ContractError: the model cannot be used, see ``latent_sites`` and ``LogJoint``.
    """
    sites = latent_sites(model, batch)
    # its draws, which show how the model may be run, stay near the origin, where the model ran
    guide = AutoDiagonalNormal(
        continuous(model, sites), init_loc_fn=init_to_origin, init_scale=0.1
    )
    return Target(InFloat64(Pair(model, guide)), batch)


def prior_draws(target: Target, num: int) -> Tensor:
    """Points u drawn from the prior, shape (num, D); none if the prior is flat or not a density.

    Arguments:
        target: of ``target_of``.
        num: of points.
    """
    lvm, batch = target.joint.lvm, target.joint.batch
    nothing = torch.zeros(0, target.dim, dtype=torch.float64)
    if target.joint.layout.improper:
        return nothing
    try:
        prior = LogJoint(lvm, batch, base="prior")
    except ContractError:
        return nothing
    return packed(latent_sites(lvm.model, batch), prior.latents(prior.draw(num)))


def packed(sites: Mapping[str, Any], latents: Mapping[str, Tensor]) -> Tensor:
    """The points u of draws of the latents, shape (S, D).

    Arguments:
        sites: see ``latent_sites``.
        latents: as ``posterior`` returns them.
    """
    parts = [
        biject_to(site["fn"].support).inv(latents[name].double())
        for name, site in sites.items()
        if name in latents
    ]
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)
