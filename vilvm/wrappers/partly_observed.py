"""A model that observes only some components of each datum: erased pixels, missing values.

With components O of x observed and the likelihood factorising over components,

    p(x_O | z) = Π_{j ∈ O} p(x_j | z),    p(z | x_O) ∝ p(x_O | z) p(z),

so the decoder and the prior do not change, and the posterior of z is wider, since less is
observed. Which components are observed is the same for all data, or differs from datum to datum
and comes with the data (``vilvm.data.with_missing``). A guide fitted to it, by ``fit`` or
``vilvm.wrappers.fit_guide``, or importance resampling (``vilvm.resample``), draws z, and the
decoder completes the datum (``vilvm.wrappers.impute``).

Reference: Stochastic Backpropagation and Approximate Inference in Deep Generative Models, Rezende,
Mohamed and Wierstra, 2014 (missing data imputation).
"""

from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from vilvm.data.missing import Masked
from vilvm.lvm import ContractError, Wrapped, rebuildable
from vilvm.wrappers._handlers import Substitute

__all__ = ["PartlyObserved", "partly_observed"]


@rebuildable
class PartlyObserved(Wrapped):
    """A model whose likelihood scores only some components of a datum; see ``partly_observed``.

    Arguments:
        lvm: the inner model.
        observed: Boolean, the shape of one datum, True for an observed component; None if the
            mask comes with the data.
        site: the name of the observed site.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.wrappers import PartlyObserved
        >>> lvm = PartlyObserved(VAE(data_dim=6, latent_dim=2), torch.arange(6) < 3, "x")
        >>> vilvm.log_weights(lvm, torch.zeros(4, 6), num_samples=5).log_weight.shape
        torch.Size([5, 4])
    """

    observed: Tensor | None

    def __init__(self, lvm: torch.nn.Module, observed: Tensor | None, site: str):
        super().__init__(lvm)
        self.site = site
        self.register_buffer("observed", observed)

    def model(self, batch: Any) -> Any:
        """p(x_O | z) p(z)."""
        x, own = batch, None
        if isinstance(batch, Masked):
            x, own = batch
        with Substitute(self.site, partial(self._restrict, own=own)) as restricted:
            result = self.inner_model(x)
        if not restricted.found:
            raise ContractError(
                f"partly_observed: {type(self.lvm).__name__} has no site {self.site!r}; name its "
                "observed site with site=...."
            )
        return result

    def guide(self, batch: Any) -> Any:
        """q(z | x), the guide of the inner model, which may read unobserved components."""
        if isinstance(batch, Masked):
            batch = batch.x
        return self.inner_guide(batch)

    def _restrict(self, fn: Any, own: Tensor | None) -> dist.TorchDistribution:
        """The distribution of the observed components, by the masks of model and data."""
        mask = self._mask(fn, own)
        if mask is None:
            return fn  # nothing is missing
        if not fn.event_dim:
            return fn.mask(mask)
        parts = getattr(fn, "base_dist", None)
        if parts is None or parts.event_shape:
            raise ContractError(
                f"partly_observed: the distribution of site {self.site!r} ({type(fn).__name__}) "
                "does not factorise over its components."
            )
        return parts.mask(mask).to_event(fn.event_dim)

    def _mask(self, fn: Any, own: Tensor | None) -> Tensor | None:
        """The mask of the model and that of the data, together; None if nothing is missing."""
        whole = (*fn.batch_shape, *fn.event_shape)
        for mask, shape, of in (
            (self.observed, tuple(fn.event_shape), "a datum of"),
            (own, whole, "the batch of"),
        ):
            if mask is not None and not _fits(mask, shape, of == "the batch of"):
                raise ContractError(
                    f"partly_observed: the mask has shape {tuple(mask.shape)}, and {of} site "
                    f"{self.site!r} has shape {shape}."
                )
        if self.observed is None or own is None:
            return self.observed if own is None else own
        return own & self.observed


def _fits(mask: Tensor, shape: tuple[int, ...], leading: bool) -> bool:
    """Whether a mask has a shape, or with `leading` its last dimensions."""
    if not leading:
        return tuple(mask.shape) == shape
    return tuple(mask.shape) == shape[max(0, len(shape) - mask.dim()) :]


def partly_observed(
    lvm: torch.nn.Module, observed: Tensor | None = None, *, site: str = "x"
) -> PartlyObserved:
    """A model that observes only the components of a datum that a mask selects.

    Without `observed` the mask comes with the data (``vilvm.data.with_missing``): model and guide
    of `lvm` are called with ``batch.x``, and entries where ``batch.observed`` is False are not
    scored. Data without a mask are observed completely.

    Arguments:
        lvm: a model whose likelihood factorises over the components of a datum.
        observed: Boolean, the shape of one datum, True for an observed component, if the same
            components of all data are observed. The other components of a batch are not scored,
            but must be in the likelihood's support, and a guide may read them.
        site: the name of the observed site.

    Returns:
        The model, which shares its parameters with `lvm`.

    Raises:
        ValueError: `observed` is not a Boolean tensor, or selects nothing.
        ContractError: when the model runs: there is no such site, the mask has another shape, or
            the likelihood does not factorise.

    References: Stochastic Backpropagation and Approximate Inference in Deep Generative Models,
    Rezende, Mohamed and Wierstra, 2014; MIWAE: Deep Generative Modelling and Imputation of
    Incomplete Data Sets, Mattei and Frellsen, 2019.

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
    if observed is not None and not (is_mask and bool(observed.any())):
        raise ValueError(
            "partly_observed: `observed` must be a Boolean tensor of a datum's shape, with at "
            "least one True."
        )
    return PartlyObserved(lvm, observed, site)
