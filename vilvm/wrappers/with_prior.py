"""A model with another prior: p̂(z) replaces p(z); p(x | z) and the guide do not change."""

from typing import Any

import torch

from vilvm.lvm import ContractError, Wrapped, rebuildable
from vilvm.priors.fitted import FittedPrior
from vilvm.wrappers._handlers import Substitute

__all__ = ["WithPrior", "with_prior"]


@rebuildable
class WithPrior(Wrapped):
    """A model with another prior of one latent; see ``with_prior``.

    Arguments:
        lvm: the inner model.
        prior: p̂(z), from ``fit_prior``.

    Raises:
        ContractError: `prior` is not a ``FittedPrior``.

    Examples:
        >>> import torch
        >>> from vilvm.models.autoencoder import Autoencoder
        >>> from vilvm.priors import fit_prior
        >>> from vilvm.wrappers import WithPrior
        >>> lvm = Autoencoder(data_dim=6, latent_dim=2)
        >>> WithPrior(lvm, fit_prior(lvm, torch.rand(50, 6))).prior.kind
        'full'
    """

    prior: FittedPrior

    def __init__(self, lvm: torch.nn.Module, prior: FittedPrior):
        if not isinstance(prior, FittedPrior):
            raise ContractError(
                f"with_prior: prior must be a result of fit_prior; got {prior!r}."
            )
        super().__init__(lvm)
        self.prior = prior

    def model(self, batch: Any) -> Any:
        """p(x | z) p̂(z)."""
        with Substitute(self.prior.latent, self._replace) as replaced:
            result = self.inner_model(batch)
        if not replaced.found:
            raise ContractError(
                f"with_prior: the prior is of latent {self.prior.latent!r}, which "
                f"{type(self.lvm).__name__} does not have."
            )
        return result

    def guide(self, batch: Any) -> Any:
        """q(z | x), the guide of the inner model."""
        return self.inner_guide(batch)

    def _replace(self, old: Any) -> Any:
        new = self.prior.distribution()
        if new.event_shape != old.event_shape:
            raise ContractError(
                f"with_prior: the prior is of vectors of shape {tuple(new.event_shape)}, and "
                f"latent {self.prior.latent!r} has shape {tuple(old.event_shape)}."
            )
        return new.expand(old.batch_shape)


def with_prior(lvm: torch.nn.Module, prior: FittedPrior) -> WithPrior:
    """A model with a fitted prior, for sampling and for densities.

    A degenerate guide stays degenerate: an auto-encoder with a prior can be sampled, but has an
    evidence bound only under a stochastic guide (``fit_guide``).

    Arguments:
        lvm: the model.
        prior: p̂(z), from ``fit_prior``.

    Returns:
        The model, which shares its parameters with `lvm`.

    Raises:
        ContractError: `prior` is not a ``FittedPrior``; or, when the model runs, there is no such
            latent, or it has another shape.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.autoencoder import Autoencoder
        >>> from vilvm.priors import fit_prior
        >>> from vilvm.wrappers import with_prior
        >>> lvm, x = Autoencoder(data_dim=6, latent_dim=2), torch.rand(50, 6)
        >>> vilvm.sample(with_prior(lvm, fit_prior(lvm, x)), 3)["x"].shape
        torch.Size([3, 6])
    """
    return WithPrior(lvm, prior)
