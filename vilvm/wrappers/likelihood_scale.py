"""The scale of a Gaussian likelihood, fitted after training.

An auto-encoder is trained on the squared error, the likelihood N(g(z), σ² I) with σ = 1. In
training σ only changes the unit; a density depends on it. Given the codes, its maximum likelihood
estimate is

    σ̂² = mean over data and components of (x − x̂)²,    x̂ = E[x | z = E_q[z | x]].

Reference: Simple and Effective VAE Training with Calibrated Decoders, Rybkin, Daniilidis and
Levine, 2021.
"""

from typing import Any

import pyro.distributions as dist
import torch

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.lvm import ContractError, Wrapped, fixed_beside, rebuildable
from vilvm.weights import find_layout, posterior_mean
from vilvm.weights.prediction import predicted_means
from vilvm.wrappers._handlers import Substitute

__all__ = ["WithLikelihoodScale", "fit_likelihood_scale"]

_ROWS = 1000


@rebuildable
class WithLikelihoodScale(Wrapped):
    """A model with another scale of its Gaussian likelihood; see ``fit_likelihood_scale``.

    Arguments:
        lvm: the inner model.
        site: the name of its observed site.
        scale: σ, a scalar tensor.

    Examples:
        >>> import torch
        >>> from vilvm.models.linear_autoencoder import LinearAutoencoder
        >>> from vilvm.wrappers import WithLikelihoodScale
        >>> WithLikelihoodScale(LinearAutoencoder(4, 2), "x", torch.tensor(0.5)).scale.item()
        0.5
    """

    def __init__(self, lvm: torch.nn.Module, site: str, scale: torch.Tensor):
        super().__init__(lvm)
        self.site = site
        self.scale = torch.nn.Parameter(scale, requires_grad=False)

    def model(self, batch: Any) -> Any:
        """p(x | z) p(z), x ~ N(g(z), scale² I)."""
        with Substitute(self.site, self._rescale):
            return self.inner_model(batch)

    def guide(self, batch: Any) -> Any:
        """q(z | x), the guide of the inner model."""
        return self.inner_guide(batch)

    def _rescale(self, old: Any) -> Any:
        return dist.Normal(old.mean, self.scale).to_event(old.event_dim)


@torch.no_grad()
def fit_likelihood_scale(
    lvm: Any, data: Any, *, num_samples: int = 1, seed: int = 0
) -> WithLikelihoodScale:
    """Fits the scale σ of a model's Gaussian likelihood by maximum likelihood given the codes.

    The codes are the posterior means. For an auto-encoder this is exact; for a stochastic guide σ
    is smaller than the maximiser of the ELBO.

    Arguments:
        lvm: a trained model with one observed site, which is Gaussian.
        data: the training data; a fresh transform is applied once.
        num_samples: draws per datum for a posterior mean without closed form.
        seed: of these draws, and of the transform.

    Returns:
        The model with the fitted scale; it shares its parameters with `lvm`.

    Raises:
        ValueError: the model reproduces the data exactly, so σ would be 0.
        ContractError: the model has several observed sites, or one that is not Gaussian or has
            another shape than a datum.

    Reference: Simple and Effective VAE Training with Calibrated Decoders, Rybkin, Daniilidis and
    Levine, 2021.

    Examples:
        >>> import torch
        >>> from vilvm.models.linear_autoencoder import LinearAutoencoder
        >>> from vilvm.wrappers.likelihood_scale import fit_likelihood_scale
        >>> x = torch.randn(50, 4)
        >>> bool(fit_likelihood_scale(LinearAutoencoder(4, 2), x).scale > 0)
        True
    """
    seed = check_seed("fit_likelihood_scale: seed", seed)
    fixed = fixed_beside(lvm, data, seed)
    num_samples = check_number("fit_likelihood_scale: num_samples", num_samples)
    with seeded(seed, fixed.device, "training"):
        return _fit_scale(lvm, fixed, num_samples)


def _fit_scale(lvm: Any, fixed: Data, num_samples: int) -> WithLikelihoodScale:
    some = fixed
    if fixed.divisible:
        some = fixed.subset(slice(0, 2))
    layout = find_layout(lvm, some.x)
    site = layout.observed[0]
    if len(layout.observed) != 1 or layout.families[site] != "Normal":
        raise ContractError(
            "fit_likelihood_scale needs a model with one Gaussian observed site; "
            f"{type(lvm).__name__} observes {layout.families}."
        )
    residuals = [
        _residual(lvm, part.x, site, num_samples) for part in fixed.chunks(_ROWS)
    ]
    squares = torch.stack([r.double().square().sum() for r in residuals]).sum()
    mean_square = squares / sum(r.numel() for r in residuals)
    if not bool(mean_square > 0):
        raise ValueError(
            "fit_likelihood_scale: the model reproduces the data exactly, so the noise has no "
            "scale; use more data, or fewer dimensions."
        )
    return WithLikelihoodScale(lvm, site, mean_square.sqrt().to(residuals[0]))


def _residual(lvm: Any, batch: Any, site: str, num_samples: int) -> torch.Tensor:
    mean = predicted_means(lvm, posterior_mean(lvm, batch, num_samples))[site]
    if not isinstance(batch, torch.Tensor) or mean.shape != batch.shape:
        raise ContractError(
            f"fit_likelihood_scale: site {site!r} has shape {tuple(mean.shape)}, which is not "
            "that of the data; use a model that observes its batch unchanged."
        )
    return batch - mean
