"""Densities of the guide at given latents, and its divergence from the prior by dimension.

Where q(z_d | x) and p(z_d) are univariate and independent of the other dimensions of their latent,
so is their divergence, and

    KL(q(z | x) ‖ p(z)) = Σ_d KL(q(z_d | x) ‖ p(z_d)),

each term in closed form where torch knows one (two normals, say), else the mean of log q(z_d | x)
− log p(z_d) over draws. For a latent that depends on another, the divergence is that of the
conditional densities, averaged over draws of the other latent.
"""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from vilvm._runtime.argument_checks import check_number
from vilvm._runtime.random import preserved_rng
from vilvm.data.data import Data
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._conditioning import drawn_values
from vilvm.weights._enumeration import run_model
from vilvm.weights._guide_runs import run_guide
from vilvm.weights._passes import Pass, Values
from vilvm.weights._reduction import log_densities, total
from vilvm.weights._sites import family, mask_digest, to_own_dims
from vilvm.weights._supports import guide_sites, scored_guide
from vilvm.weights._traces import run
from vilvm.weights._vectorisation import run_at_samples
from vilvm.weights.checks import as_batch
from vilvm.weights.layout import Layout, find_layout

__all__ = ["divergences", "guide_log_prob"]


def guide_log_prob(
    lvm: LatentVariableModel,
    batch: Any,
    latents: Mapping[str, Tensor],
    *,
    layout: Layout | None = None,
    validate: bool = False,
) -> Tensor:
    """log q(z | x) of given latents for every datum of a batch.

    Differentiable where autograd is on.

    Arguments:
        lvm: the model and guide; only the guide is run.
        batch: what both are called with.
        latents: every latent by name, shape (num_samples, num_data, ...), as ``posterior`` returns
            them.
        layout: the layout of this very batch; by default a run of the pair finds it.
        validate: whether Pyro validates parameters and values.

    Returns:
        Shape (num_samples, num_data), in nats; (num_samples,) if the data share a latent.

    Raises:
        ContractError: the guide computes its latents from auxiliary draws (as autoguides do), so
            that it has no density at given latents; or a latent is missing, or has another shape
            than the guide's.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.guide_density import guide_log_prob
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> guide_log_prob(lvm, x, {"z": torch.zeros(3, 4, 2)}).shape
        torch.Size([3, 4])
    """
    batch = as_batch(lvm, batch)
    device = Data(batch).device
    if layout is None:
        with preserved_rng(device):
            layout = find_layout(lvm, batch)
    missing = [n for n in layout.latents if n not in latents]
    if missing:
        raise ContractError(
            f"guide_log_prob: no value was given for the latent {missing[0]!r}; got "
            f"{sorted(latents)}."
        )
    given = {name: latents[name] for name in layout.latents}
    num_samples = len(given[layout.latents[0]])
    with (
        module_parameters(lvm),
        evaluation_mode(lvm),
        pyro.validation_enabled(validate),
        preserved_rng(device),
    ):
        with torch.no_grad():
            drawn = guide_sites(
                run(lvm.guide, "guide", batch, layout.fixed_subsample())
            )
        _check_draws_latents_only(lvm, drawn, layout)
        for name, value in given.items():
            site = drawn[name]
            own = to_own_dims(site["value"], site, 1, layout.nesting).shape[1:]
            if value.shape != (num_samples, *own):
                raise ContractError(
                    f"guide_log_prob: latent {name!r} has shape {tuple(value.shape)}; the guide's "
                    f"is {(num_samples, *own)}."
                )
        density = _guide_density(lvm, layout)
        values = run_at_samples(
            lvm,
            batch,
            num_samples,
            density,
            given,
            vectorisation=layout.vectorisation,
        )
    return total(values["log_guides"].values())


def _check_draws_latents_only(
    lvm: object, sites: Mapping[str, Any], layout: Layout
) -> None:
    for name, site in sites.items():
        if name not in layout.latents and family(site["fn"]) != "Unit":
            raise ContractError(
                f"{type(lvm).__name__}: the guide computes its latents from an auxiliary draw, "
                f"{name!r}, so it has no density at given latents; use a guide that samples the "
                "latents themselves."
            )


def _guide_density(lvm: LatentVariableModel, layout: Layout) -> Pass:
    guide_half = scored_guide(lvm, layout.masked)

    def density(
        batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        trace = run_guide(guide_half, batch, given, num_samples, layout)
        return {
            "log_guides": log_densities(
                "guide", guide_sites(trace), num_samples, layout
            )
        }

    return Pass(density, "log-guide densities")


def divergences(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int = 1,
    *,
    layout: Layout | None = None,
) -> dict[str, Tensor]:
    """Terms whose mean is KL(q(z | x) ‖ p(z)), by latent and, if possible, by dimension.

    Arguments:
        lvm: the model and guide; every latent stands in the data plate, and the guide samples it
            itself.
        batch: what both are called with.
        num_samples: draws of the latents; terms in closed form do not depend on it.
        layout: the layout of this very batch; by default a run of the pair finds it.

    Returns:
        By latent, in nats, shape (num_samples, num_data, *plates, *event), the plates being those
        within a datum, if guide and prior factorise over the event; else (num_samples, num_data).

    Raises:
        ContractError: the pair breaks the contract on this batch, or the data share a latent.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.guide_density import divergences
        >>> divergences(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6))["z"].shape
        torch.Size([1, 4, 2])
    """
    num_samples = check_number("num_samples", num_samples)
    batch = as_batch(lvm, batch)
    layout = layout or find_layout(lvm, batch)
    if not layout.local:
        raise ContractError(
            f"divergences: {type(lvm).__name__} has a latent that its data share; there is no "
            "divergence per datum."
        )
    pass_ = _divergence_pass(lvm, layout)
    with module_parameters(lvm), evaluation_mode(lvm):
        values = run_at_samples(
            lvm, batch, num_samples, pass_, vectorisation=layout.vectorisation
        )
    scores, priors, each = (
        {name: term.double() for name, term in values.get(kind, {}).items()}
        for kind in ("log_guides", "log_priors", "each")
    )
    if set(scores) == set(priors) == set(layout.latents):
        return {n: each.get(n, scores[n] - priors[n]) for n in layout.latents}
    # Latents computed from an auxiliary draw, or whose priors depend on one enumerated latent,
    # have only a joint divergence.
    terms = [*scores.values(), *(-term for term in priors.values())]
    return {" and ".join(layout.latents): torch.stack(terms).sum(0)}


def _divergence_pass(lvm: LatentVariableModel, layout: Layout) -> Pass:
    guide_half = scored_guide(lvm, layout.masked)

    def run_both(
        batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        trace = run_guide(guide_half, batch, given, num_samples, layout)
        model = run_model(
            lvm.model, batch, (trace, layout.fixed_subsample()), num_samples, layout
        )
        guide, size = guide_sites(trace), num_samples or 1
        own = [n for n in layout.latents if n not in model.dependent]
        each = {
            n: _by_dimension(n, guide[n], model.sites[n], size, layout) for n in own
        }
        return {
            "log_guides": log_densities("guide", guide, num_samples, layout),
            "log_priors": model.log_priors,
            "each": {n: term for n, term in each.items() if term is not None},
            "drawn": drawn_values(guide, size, layout.nesting),
        }

    return Pass(run_both, "divergences")


def _by_dimension(
    name: str, guide: Any, model: Any, num_samples: int, layout: Layout
) -> Tensor | None:
    """The terms of one latent, shape (num_samples, num_data, *plates, *event).

    None unless guide and prior both factorise.
    """
    q, p = _univariate(guide), _univariate(model)
    if q is None or p is None:
        return None
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    # torch's divergence of Bernoullis does not broadcast
    q, p = q.expand(shape), p.expand(shape)
    try:
        value = kl_divergence(q, p)
    except NotImplementedError:
        value = q.log_prob(guide["value"]) - p.log_prob(guide["value"])
    own = to_own_dims(value, guide, num_samples, layout.nesting)
    return own.movedim(layout.data_axes[name], 1).double()


def _univariate(site: Any) -> Distribution | None:
    """The univariate distributions of a site's dimensions; None if they are dependent."""
    fn = site["fn"]
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if fn.event_dim or mask_digest(site) or site["mask"] is not None:
        return None
    return fn
