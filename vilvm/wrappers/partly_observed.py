"""A model that observes only some components of each datum: erased pixels, missing entries.

With components O of x observed and the likelihood factorising over components,

    p(x_O | z) = Π_{j ∈ O} p(x_j | z),    p(z | x_O) ∝ p(x_O | z) p(z),

so the decoder and the prior do not change, and the posterior of z is wider, since less is
observed. A guide fitted to it (``vilvm.wrappers.fit_guide``), or importance resampling
(``vilvm.resample``), draws z, and the decoder completes the datum.

Reference: Stochastic Backpropagation and Approximate Inference in Deep Generative Models, Rezende,
Mohamed and Wierstra, 2014 (missing data imputation).
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.lvm import ContractError, Wrapped, rebuildable
from vilvm.wrappers._handlers import Substitute

__all__ = ["PartlyObserved", "partly_observed"]


@rebuildable
class PartlyObserved(Wrapped):
    """A model whose likelihood scores only some components of a datum; see ``partly_observed``.

    Arguments:
        lvm: the inner model.
        observed: Boolean, the shape of one datum, True for an observed component.
        site: the name of the observed site.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.wrappers import PartlyObserved
        >>> lvm = PartlyObserved(VAE(data_dim=6, latent_dim=2), torch.arange(6) < 3, "x")
        >>> vilvm.log_weights(lvm, torch.zeros(4, 6), num_samples=5).log_weight.shape
        torch.Size([5, 4])
    """

    observed: Tensor

    def __init__(self, lvm: torch.nn.Module, observed: Tensor, site: str):
        super().__init__(lvm)
        self.site = site
        self.register_buffer("observed", observed)

    def model(self, batch: Any) -> Any:
        """p(x_O | z) p(z)."""
        with Substitute(self.site, self._restrict) as restricted:
            result = self.inner_model(batch)
        if not restricted.found:
            raise ContractError(
                f"partly_observed: {type(self.lvm).__name__} has no site {self.site!r}; name its "
                "observed site with site=...."
            )
        return result

    def guide(self, batch: Any) -> Any:
        """q(z | x), the guide of the inner model, which may read unobserved components."""
        return self.inner_guide(batch)

    def _restrict(self, fn: Any) -> dist.TorchDistribution:
        if fn.event_shape != self.observed.shape:
            raise ContractError(
                f"partly_observed: the mask has shape {tuple(self.observed.shape)}, and a datum "
                f"of site {self.site!r} has shape {tuple(fn.event_shape)}."
            )
        parts = getattr(fn, "base_dist", None)
        if parts is None or parts.event_shape:
            raise ContractError(
                f"partly_observed: the distribution of site {self.site!r} ({type(fn).__name__}) "
                "does not factorise over its components."
            )
        return parts.mask(self.observed).to_event(fn.event_dim)


def partly_observed(
    lvm: torch.nn.Module, observed: Tensor, *, site: str = "x"
) -> PartlyObserved:
    """A model that observes only the components of a datum that a mask selects.

    Arguments:
        lvm: a model whose likelihood factorises over the components of a datum.
        observed: Boolean, the shape of one datum, True for an observed component. The other
            components of a batch are not scored, but must be in the likelihood's support, and a
            guide may read them.
        site: the name of the observed site.

    Returns:
        The model, which shares its parameters with `lvm`.

    Raises:
        ValueError: `observed` is not a Boolean tensor, or selects nothing.
        ContractError: when the model runs: there is no such site, the mask has another shape, or
            the likelihood does not factorise.

    Reference: Stochastic Backpropagation and Approximate Inference in Deep Generative Models,
    Rezende, Mohamed and Wierstra, 2014.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.wrappers.partly_observed import partly_observed
        >>> lvm = partly_observed(VAE(data_dim=6, latent_dim=2), torch.arange(6) < 3)
        >>> z = vilvm.resample(lvm, torch.zeros(4, 6), 10, proposals=100)["z"]
        >>> vilvm.predict(lvm, {"z": z.flatten(0, 1)})["x"].shape
        torch.Size([40, 6])
    """
    is_mask = isinstance(observed, Tensor) and observed.dtype == torch.bool
    if not is_mask or not bool(observed.any()):
        raise ValueError(
            "partly_observed: `observed` must be a Boolean tensor of a datum's shape, with at "
            "least one True."
        )
    return PartlyObserved(lvm, observed, site)
