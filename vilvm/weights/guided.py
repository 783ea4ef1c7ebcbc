"""The guide asked about given latents: log q(z | x) of any z and x, and how far it is from the prior, dimension by dimension.

Where q(z_d | x) and p(z_d) are univariate and independent of the other dimensions of their latent, so is their divergence, and

    KL(q(z | x) ‖ p(z)) = Σ_d KL(q(z_d | x) ‖ p(z_d)),

each term in closed form where torch knows one (two normals, say), else the mean of log q(z_d | x) − log p(z_d) over draws. A latent
that depends on another has the divergence of its conditional densities, averaged over draws of that one.
"""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from vilvm.data import Data, kept_generators
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, module_parameters
from vilvm.weights.contract import check_batch, check_number
from vilvm.weights.densities import reduced, total
from vilvm.weights.enumeration import run_model
from vilvm.weights.structure import Layout, guide_sites, held_still, layout
from vilvm.weights.traces import log_prob, mask_of, run, strip, unstrip

__all__ = ["divergences", "guide_log_prob"]


def guide_log_prob(
    lvm: LatentVariableModel, batch: Any, latents: Mapping[str, Tensor], *, plan: Layout | None = None, validate: bool = False
) -> Tensor:
    """log q(z | x) of given latents for every datum of a batch. Differentiable where autograd is on.

    Arguments:
        lvm: the model and guide, of which the guide alone is run.
        batch: what both are called with.
        latents: every latent by name, shape (num_samples, num_data, ...), as ``posterior`` returns them.
        plan: the layout of this very batch, which a run of the pair finds if it is not given.
        validate: whether Pyro checks that parameters and values lie where they must.

    Returns:
        Shape (num_samples, num_data), in nats; (num_samples,) if a latent is shared by the data.

    Raises:
        ContractError: the guide makes its latents of auxiliary draws (as autoguides do), which given latents do not tell; or a latent
            is missing, or of another shape than the guide's.

    Example:
        >>> import torch, vilvm
        >>> from models.vae import VAE
        >>> from vilvm.weights.guided import guide_log_prob
        >>> guide_log_prob(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), {"z": torch.zeros(3, 4, 2)}).shape
        torch.Size([3, 4])
    """
    check_batch(batch)
    if plan is None:
        with kept_generators(Data(batch).device):
            plan = layout(lvm, batch)
    missing = [n for n in plan.latents if n not in latents]
    if missing:
        raise ContractError(f"guide_log_prob: no value was given for the latent {missing[0]!r}; got {sorted(latents)}.")
    num_samples = len(latents[plan.latents[0]])
    checked = pyro.validation_enabled(validate)
    with module_parameters(lvm), evaluation_mode(lvm), checked, kept_generators(Data(batch).device):
        with torch.no_grad():
            drawn = guide_sites(run(lvm.guide, "guide", batch, held_still(plan)))
        auxiliary = [n for n in drawn if n not in plan.latents]
        if auxiliary:
            raise ContractError(
                f"{type(lvm).__name__}: the guide makes its latents of an auxiliary draw, {auxiliary[0]!r}, so it has no density of given "
                "latents; use a guide that samples the latents themselves."
            )
        given = poutine.Trace()
        for name in plan.latents:
            value = _placed(latents[name], drawn[name], plan, num_samples)
            given.add_node(name, **{**drawn[name], "value": value})
        trace = run(lvm.guide, "guide", batch, given, held_still(plan), samples=(num_samples, plan.sample_dim))
        terms = [reduced(plan.is_in_data(s), log_prob("guide", s), num_samples, plan) for s in guide_sites(trace).values()]
    return total(terms)


def _placed(value: Tensor, site: Any, plan: Layout, num_samples: int) -> Tensor:
    """Draws of shape (S, *own plates, *event) with a dimension of size one for every plate that the site does not stand in."""
    event = tuple(site["value"].shape[site["value"].dim() - site["fn"].event_dim :])
    sizes = {f.dim: f.size for f in site["cond_indep_stack"] if f.vectorized}
    own = (num_samples, *(sizes[d] for d in sorted(sizes)), *event)
    if tuple(value.shape) != own:
        raise ContractError(f"guide_log_prob: latent {site['name']!r} has shape {tuple(value.shape)}; the guide's is {own}.")
    return unstrip(value, site, plan.nesting)


def divergences(lvm: LatentVariableModel, batch: Any, num_samples: int = 1, *, plan: Layout | None = None) -> dict[str, Tensor]:
    """Terms whose mean over samples is KL(q(z | x) ‖ p(z)), by latent and, where both factorise, by dimension.

    Arguments:
        lvm: the model and guide; every latent stands in the plate over the data, and the guide samples it itself.
        batch: what both are called with.
        num_samples: draws of the latents; of no effect on the terms that are closed forms.
        plan: the layout of this very batch, which a run of the pair finds if it is not given.

    Returns:
        By latent, in nats, shape (num_samples, num_data, *plates, *event), the plates those within a datum, if guide and prior factorise
        over the event, else (num_samples, num_data).

    Raises:
        ContractError: the pair breaks the contract on this batch, or a latent is shared by the data.
    """
    check_number("num_samples", num_samples)
    check_batch(batch)
    plan = layout(lvm, batch) if plan is None else plan
    if not plan.local:
        raise ContractError(
            f"divergences: {type(lvm).__name__} has a latent that its data share; there is no divergence per datum."
        )
    fixed = held_still(plan)

    def reduce(in_data: bool, value: Tensor) -> Tensor:
        return reduced(in_data, value, num_samples, plan)

    with module_parameters(lvm), evaluation_mode(lvm):
        guide_trace = run(lvm.guide, "guide", batch, fixed, samples=(num_samples, plan.sample_dim))
        model = run_model(lvm.model, batch, (guide_trace, fixed), num_samples, plan, reduce)
    guide = guide_sites(guide_trace)
    scores = {n: reduce(plan.is_in_data(s), log_prob("guide", s)).double() for n, s in guide.items()}
    if set(guide) != set(plan.latents):  # the latents are functions of an auxiliary draw, and have a divergence together only
        return {
            " and ".join(plan.latents): torch.stack(list(scores.values())).sum(0)
            - torch.stack([t.double() for t in model.log_priors.values()]).sum(0)
        }
    found = {}
    for name in plan.latents:
        each = _by_dimension(name, guide[name], model.sites[name], num_samples, plan)
        found[name] = scores[name] - model.log_priors[name].double() if each is None else each
    return found


def _by_dimension(name: str, guide: Any, model: Any, num_samples: int, plan: Layout) -> Tensor | None:
    """The terms of one latent, shape (num_samples, num_data, *plates, *event); None unless guide and prior both factorise."""
    q, p = _univariate(guide), _univariate(model)
    if q is None or p is None:
        return None
    try:
        value = kl_divergence(q, p)
    except NotImplementedError:
        value = q.log_prob(guide["value"]) - p.log_prob(guide["value"])
    return strip(value, guide, num_samples, plan.nesting).movedim(plan.data_axes[name], 1).double()


def _univariate(site: Any) -> Distribution | None:
    """The distribution of one dimension of a site, all of them side by side; None if they depend on one another."""
    fn = site["fn"]
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return None if fn.event_dim or mask_of(site) or site["mask"] is not None else fn
