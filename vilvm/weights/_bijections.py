"""Bijections from ℝᵈ to the support of a latent."""

from typing import Any

from torch.distributions import (
    ComposeTransform,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
)

from vilvm.lvm import ContractError
from vilvm.weights._sites import family

__all__ = ["bijection_to"]


def bijection_to(site: Any) -> Transform:
    """The bijection T from ℝᵈ to the support of a site, which may depend on other latents."""
    fn = site["fn"]
    try:
        return _of_transformed(fn) or biject_to(_of_components(fn.support))
    except NotImplementedError:
        raise ContractError(
            f"Latent {site['name']!r} is {family(fn)}, and no bijection from ℝᵈ to its support "
            f"({fn.support}) is known, so no chain can move it: write it as a function of latents "
            "over ℝᵈ, or take the importance-weighted bound."
        ) from None


def _of_components(support: Any) -> Any:
    """The support of a distribution; for a mixture, the support of its components.

    torch registers no bijection for the constraint of a mixture.
    """
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return support.base_constraint
    if isinstance(support, constraints.independent):
        return constraints.independent(
            _of_components(support.base_constraint),
            support.reinterpreted_batch_ndims,
        )
    return support


def _of_transformed(fn: Any) -> Transform | None:
    """T of a transformed distribution whose support torch reports wrongly; else None.

    torch reports the codomain of the last transform, as if that were applied to all of ℝᵈ. For a
    shifted exponential it reports the whole line.
    """
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist  # under to_event, mask and expand
    if (
        not isinstance(fn, TransformedDistribution)
        or type(fn).support is not TransformedDistribution.support
        or not fn.transforms
    ):
        return None
    before = [fn.base_dist.support, *(t.codomain for t in fn.transforms[:-1])]
    if all(_is_real(constraint) for constraint in before):
        return None
    first = _of_transformed(fn.base_dist) or biject_to(fn.base_dist.support)
    return ComposeTransform([first, *fn.transforms])


def _is_real(constraint: Any) -> bool:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.real
