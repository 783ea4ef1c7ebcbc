"""Draws: data from the model as a simulator, latents from the guide, and the means of either."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from vilvm.lvm import ContractError, LatentVariableModel, check_contract, module_parameters
from vilvm.weights.structure import Layout, data_plate, held_still, layout
from vilvm.weights.traces import Sites, nesting_of, plate_dims, run, sites_of, strip, was_observed

__all__ = ["posterior", "posterior_mean", "predict", "sample"]


def sample(lvm: LatentVariableModel, num_samples: int, *, like: Any = None, mean: bool = False) -> dict[str, Tensor]:
    """Draws from the model as a simulator: latents from the prior, data from the likelihood.

    Arguments:
        lvm: the model and guide; the guide is not run.
        num_samples: independent draws.
        like: a batch, for a model that reads more of it than its length (covariates, say); each draw is then a whole batch.
        mean: whether observed sites return the mean of their likelihood in place of a draw.

    Returns:
        Every latent and observed site by name, shape (num_samples, ...); (num_samples, num_data, ...) if `like` is given.

    Raises:
        ContractError: the model cannot run without a batch, and `like` was not given.

    Example:
        >>> import vilvm
        >>> from models.vae import VAE
        >>> vilvm.sample(VAE(data_dim=6, latent_dim=2), 3)["x"].shape
        torch.Size([3, 6])
    """
    check_contract(lvm)
    batch = like if like is not None else torch.empty(1, 0, device=_device(lvm))
    with torch.no_grad(), module_parameters(lvm):
        try:
            probe = _simulate(lvm, batch)
            nesting = nesting_of(probe)
            sites = _simulate(lvm, batch, samples=(num_samples, -1 - nesting))
        except ContractError as error:
            if like is not None:
                raise
            raise ContractError(f"{error} To simulate a model that reads its batch, pass like=a batch of data.") from None
    plate = data_plate(batch, [s for s in probe.values() if was_observed(s)])
    draws = {}
    for name, site in sites.items():
        value = site["fn"].mean if mean and was_observed(site) else site["value"]
        value = strip(value, site, num_samples, nesting)
        # The one datum of the placeholder makes room for the draws, each of which is a datum.
        place = _place(site, plate) if like is None else None  # counted among the plates, of which samples come first
        draws[name] = value if place is None else value.squeeze(place).movedim(0, place - 1)
    return draws


def posterior(lvm: LatentVariableModel, batch: Any, num_samples: int = 1) -> dict[str, Tensor]:
    """Draws of the latents from the guide, q(z | x).

    Returns:
        Every latent by name, shape (num_samples, num_data, ...); (num_samples, ...) for a latent shared by the data.

    Example:
        >>> import torch, vilvm
        >>> from models.vae import VAE
        >>> vilvm.posterior(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=10)["z"].shape
        torch.Size([10, 4, 2])
    """
    plan = layout(lvm, batch)
    sites = _guide_sites(lvm, batch, num_samples, plan)
    return {name: strip(sites[name]["value"], sites[name], num_samples, plan.nesting) for name in plan.latents}


def posterior_mean(lvm: LatentVariableModel, batch: Any, num_samples: int = 1) -> dict[str, Tensor]:
    """E[z | x] under the guide: the mean of its distribution where that is known in closed form, else of `num_samples` draws.

    A latent that depends on another is averaged over `num_samples` draws of that one.

    Returns:
        Every latent by name, shape (num_data, ...); (...) for a latent shared by the data.
    """
    plan = layout(lvm, batch)
    sites = _guide_sites(lvm, batch, num_samples, plan)

    def mean(site: Any) -> Tensor:
        try:
            value = site["fn"].mean.expand(site["value"].shape)
        except NotImplementedError:
            value = site["value"]
        return strip(value, site, num_samples, plan.nesting).mean(0)

    return {name: mean(sites[name]) for name in plan.latents}


def predict(lvm: LatentVariableModel, latents: Mapping[str, Tensor], *, like: Any = None) -> dict[str, Tensor]:
    """E[x | z]: the means of the observed sites given values of the latents, which is a decoder for any model.

    Arguments:
        lvm: the model and guide; the guide is not run.
        latents: every latent by name, shape (num_data, ...).
        like: a batch of num_data data, for a model that reads more of it than its length.

    Returns:
        Every observed site by name, shape (num_data, ...).
    """
    check_contract(lvm)
    num_data = len(next(iter(latents.values())))
    batch = like if like is not None else torch.empty(num_data, 0, device=_device(lvm))
    with torch.no_grad(), module_parameters(lvm):
        sites = _simulate(lvm, batch, given=latents)
    missing = [n for n, s in sites.items() if n not in latents and not was_observed(s)]
    if missing:
        raise ContractError(f"predict: no value was given for the latent {missing[0]!r}; it has {sorted(latents)}.")
    return {n: s["fn"].mean for n, s in sites.items() if was_observed(s)}


def _guide_sites(lvm: LatentVariableModel, batch: Any, num_samples: int, plan: Layout) -> Sites:
    with torch.no_grad(), module_parameters(lvm):
        return sites_of(run(lvm.guide, "guide", batch, held_still(plan), samples=(num_samples, plan.sample_dim)))


def _simulate(
    lvm: LatentVariableModel, batch: Any, *, samples: tuple[int, int] | None = None, given: Mapping[str, Tensor] | None = None
) -> Sites:
    """The model's sites with nothing observed but the latents in `given`."""
    model = poutine.uncondition(lvm.model)
    return sites_of(run(poutine.condition(model, data=dict(given)) if given else model, "model", batch, samples=samples))


def _place(site: Any, plate: Any) -> int | None:
    """Where the data plate stands in a site's value as ``strip`` leaves it, or None if the site is outside the plate."""
    if plate is None or all(frame.name != plate.name for frame in site["cond_indep_stack"]):
        return None
    return sorted(plate_dims(site)).index(plate.dim)


def _device(lvm: object) -> torch.device:
    parameters = lvm.parameters() if isinstance(lvm, torch.nn.Module) else iter(())
    return next((p.device for p in parameters), torch.get_default_device())
