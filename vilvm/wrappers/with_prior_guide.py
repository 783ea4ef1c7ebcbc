"""The prior as guide: q(z | x) = p(z), under which the weights are the likelihoods themselves.

    log p(x) = log E_{p(z)} p(x | z),

naive Monte Carlo: right for any posterior, however many modes it has, and useless in more than a
few dimensions, where no draw from the prior is near the posterior.
"""

from typing import Any

import torch
from pyro import poutine

from vilvm.lvm import Wrapped

__all__ = ["WithPriorGuide", "with_prior_guide"]


class WithPriorGuide(Wrapped):
    """A latent variable model whose guide is its prior; see ``with_prior_guide``."""

    keeps_model = True

    def model(self, batch: Any) -> Any:
        """p(x | z) p(z), as it was."""
        return self.inner_model(batch)

    def guide(self, batch: Any) -> None:
        """p(z): the model, of which the observed sites are neither heard nor seen."""
        with poutine.block(hide_fn=_is_data):
            self.inner_model(batch)


def _is_data(msg: Any) -> bool:
    return msg["type"] == "sample" and msg["is_observed"]


def with_prior_guide(lvm: torch.nn.Module) -> WithPriorGuide:
    """The model under its own prior as guide, which needs no training. Shares its parameters with
    `lvm`.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.wrappers import with_prior_guide
        >>> lvm = with_prior_guide(PPCA(data_dim=3, latent_dim=1))
        >>> vilvm.evaluate(lvm, torch.zeros(5, 3), num_samples=10).rate.mean
        0.0
    """
    return WithPriorGuide(lvm)
