"""The prior as guide, q(z | x) = p(z): the importance weights are the likelihoods.

    log p(x) = log E_{p(z)} p(x | z)

This is naive Monte Carlo. It is correct for every posterior, including those with several modes,
but useless in more than a few dimensions, where no draw from the prior is near the posterior.
"""

from typing import Any

import torch
from pyro import poutine

from vilvm.lvm import Wrapped, rebuildable

__all__ = ["WithPriorGuide", "with_prior_guide"]


@rebuildable
class WithPriorGuide(Wrapped):
    """A model whose guide is its prior; see ``with_prior_guide``.

    Arguments:
        lvm: the inner model.
        frozen: whether a new parameter of the inner model is an error.

    Examples:
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.wrappers import WithPriorGuide
        >>> WithPriorGuide(PPCA(data_dim=3, latent_dim=1)).keeps_model
        True
    """

    keeps_model = True

    def model(self, batch: Any) -> Any:
        """p(x | z) p(z), the inner model."""
        return self.inner_model(batch)

    def guide(self, batch: Any) -> None:
        """p(z): the inner model without its observed sites."""
        with poutine.block(hide_fn=_is_data):
            self.inner_model(batch)


def _is_data(msg: Any) -> bool:
    return msg["type"] == "sample" and msg["is_observed"]


def with_prior_guide(lvm: torch.nn.Module) -> WithPriorGuide:
    """A model with its own prior as guide, which needs no training.

    Arguments:
        lvm: the model.

    Returns:
        The model, which shares its parameters with `lvm`.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.wrappers import with_prior_guide
        >>> lvm = with_prior_guide(PPCA(data_dim=3, latent_dim=1))
        >>> vilvm.evaluate(lvm, torch.zeros(5, 3), num_samples=10).rate.mean
        0.0
    """
    return WithPriorGuide(lvm)
