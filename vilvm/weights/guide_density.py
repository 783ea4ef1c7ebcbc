"""The guide asked about given latents: log q(z | x) of any z and x, and how far it is from the
prior, dimension by dimension.

Where q(z_d | x) and p(z_d) are univariate and independent of the other dimensions of their latent,
so is their divergence, and

    KL(q(z | x) ‖ p(z)) = Σ_d KL(q(z_d | x) ‖ p(z_d)),

each term in closed form where torch knows one (two normals, say), else the mean of log q(z_d | x)
− log p(z_d) over draws. A latent that depends on another has the divergence of its conditional
densities, averaged over draws of that one.
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
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, module_parameters
from vilvm.weights._enumeration import run_model
from vilvm.weights._supports import guide_sites, scored_guide
from vilvm.weights._traces import Put, family, log_prob, mask_of, run, strip
from vilvm.weights._vectorisation import Pass, Values, at_samples
from vilvm.weights.checks import check_batch
from vilvm.weights.layout import Layout, find_layout, held_still
from vilvm.weights.log_weights import drawn_values, reducer, total

__all__ = ["divergences", "guide_log_prob"]


def guide_log_prob(
    lvm: LatentVariableModel,
    batch: Any,
    latents: Mapping[str, Tensor],
    *,
    layout: Layout | None = None,
    validate: bool = False,
) -> Tensor:
    """log q(z | x) of given latents for every datum of a batch. Differentiable where autograd is
    on.

    Arguments:
        lvm: the model and guide, of which the guide alone is run.
        batch: what both are called with.
        latents: every latent by name, shape (num_samples, num_data, ...), as ``posterior`` returns
            them.
        layout: the layout of this very batch, which a run of the pair finds if it is not given.
        validate: whether Pyro checks that parameters and values lie where they must.

    Returns:
        Shape (num_samples, num_data), in nats; (num_samples,) if a latent is shared by the data.

    Raises:
        ContractError: the guide makes its latents of auxiliary draws (as autoguides do), which
            given latents do not tell; or a latent is missing, or of another shape than the
            guide's.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.guide_density import guide_log_prob
        >>> guide_log_prob(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), {"z": torch.zeros(3, 4, 2)}).shape
        torch.Size([3, 4])
    """
    check_batch(batch)
    if layout is None:
        with preserved_rng(Data(batch).device):
            layout = find_layout(lvm, batch)
    missing = [n for n in layout.latents if n not in latents]
    if missing:
        raise ContractError(
            f"guide_log_prob: no value was given for the latent {missing[0]!r}; got "
            f"{sorted(latents)}."
        )
    num_samples = len(latents[layout.latents[0]])
    checked = pyro.validation_enabled(validate)
    with module_parameters(lvm), evaluation_mode(lvm), checked, preserved_rng(Data(batch).device):
        with torch.no_grad():
            drawn = guide_sites(run(lvm.guide, "guide", batch, held_still(layout)))
        auxiliary = [
            n for n, s in drawn.items() if n not in layout.latents and family(s["fn"]) != "Unit"
        ]
        if auxiliary:
            raise ContractError(
                f"{type(lvm).__name__}: the guide makes its latents of an auxiliary draw, "
                f"{auxiliary[0]!r}, so it has no density of given "
                "latents; use a guide that samples the latents themselves."
            )
        given = {n: latents[n] for n in layout.latents}
        for name, value in given.items():
            own = strip(drawn[name]["value"], drawn[name], 1, layout.nesting).shape[1:]
            if value.shape != (num_samples, *own):
                raise ContractError(
                    f"guide_log_prob: latent {name!r} has shape {tuple(value.shape)}; the guide's "
                    f"is {(num_samples, *own)}."
                )
        values = at_samples(
            lvm, batch, num_samples, _guide_density(lvm, layout), given, ways=layout.ways
        )
    return total(values["log_guides"].values())


def _guide_density(lvm: LatentVariableModel, layout: Layout) -> Pass:
    guide_half = scored_guide(lvm, layout.masked)

    def density(batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        with Put(given, num_samples, layout.nesting):
            trace = run(
                guide_half, "guide", batch, held_still(layout), samples=layout.samples(num_samples)
            )
        reduce = reducer(num_samples, layout)
        return {
            "log_guides": {
                n: reduce(layout.is_in_data(s), log_prob("guide", s))
                for n, s in guide_sites(trace).items()
            }
        }

    return Pass(density, "log-guide densities")


def divergences(
    lvm: LatentVariableModel, batch: Any, num_samples: int = 1, *, layout: Layout | None = None
) -> dict[str, Tensor]:
    """Terms whose mean over samples is KL(q(z | x) ‖ p(z)), by latent and, where both factorise,
    by dimension.

    Arguments:
        lvm: the model and guide; every latent stands in the plate over the data, and the guide
            samples it itself.
        batch: what both are called with.
        num_samples: draws of the latents; of no effect on the terms that are closed forms.
        layout: the layout of this very batch, which a run of the pair finds if it is not given.

    Returns:
        By latent, in nats, shape (num_samples, num_data, *plates, *event), the plates those within
        a datum, if guide and prior factorise over the event, else (num_samples, num_data).

    Raises:
        ContractError: the pair breaks the contract on this batch, or a latent is shared by the
            data.
    """
    num_samples = check_number("num_samples", num_samples)
    check_batch(batch)
    layout = find_layout(lvm, batch) if layout is None else layout
    if not layout.local:
        raise ContractError(
            f"divergences: {type(lvm).__name__} has a latent that its data share; there is no "
            "divergence per datum."
        )
    with module_parameters(lvm), evaluation_mode(lvm):
        values = at_samples(
            lvm, batch, num_samples, _divergence_pass(lvm, layout), ways=layout.ways
        )
    scores, priors, each = (
        {n: t.double() for n, t in values.get(kind, {}).items()}
        for kind in ("log_guides", "log_priors", "each")
    )
    if not set(scores) == set(priors) == set(layout.latents):
        # They are functions of an auxiliary draw, or their priors depend on one enumerated latent:
        # they have a divergence together only.
        return {
            " and ".join(layout.latents): torch.stack(
                [*scores.values(), *(-t for t in priors.values())]
            ).sum(0)
        }
    return {n: each.get(n, scores[n] - priors[n]) for n in layout.latents}


def _divergence_pass(lvm: LatentVariableModel, layout: Layout) -> Pass:
    guide_half = scored_guide(lvm, layout.masked)

    def run_both(batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        reduce, fixed, size = reducer(num_samples, layout), held_still(layout), num_samples or 1
        with Put(given, num_samples, layout.nesting):
            guide_trace = run(
                guide_half, "guide", batch, fixed, samples=layout.samples(num_samples)
            )
        model = run_model(lvm.model, batch, (guide_trace, fixed), num_samples, layout, reduce)
        guide = guide_sites(guide_trace)
        own = [n for n in layout.latents if n not in model.dependent]
        each = {n: _by_dimension(n, guide[n], model.sites[n], size, layout) for n in own}
        return {
            "log_guides": {
                n: reduce(layout.is_in_data(s), log_prob("guide", s)) for n, s in guide.items()
            },
            "log_priors": model.log_priors,
            "each": {n: t for n, t in each.items() if t is not None},
            "drawn": drawn_values(guide, size, layout),
        }

    return Pass(run_both, "divergences")


def _by_dimension(
    name: str, guide: Any, model: Any, num_samples: int, layout: Layout
) -> Tensor | None:
    """The terms of one latent, shape (num_samples, num_data, *plates, *event); None unless guide
    and prior both factorise.
    """
    q, p = _univariate(guide), _univariate(model)
    if q is None or p is None:
        return None
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    q, p = q.expand(shape), p.expand(shape)  # torch's divergence of Bernoullis does not broadcast
    try:
        value = kl_divergence(q, p)
    except NotImplementedError:
        value = q.log_prob(guide["value"]) - p.log_prob(guide["value"])
    return (
        strip(value, guide, num_samples, layout.nesting)
        .movedim(layout.data_axes[name], 1)
        .double()
    )


def _univariate(site: Any) -> Distribution | None:
    """The distribution of one dimension of a site, all of them side by side; None if they depend
    on one another.
    """
    fn = site["fn"]
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return None if fn.event_dim or mask_of(site) or site["mask"] is not None else fn
