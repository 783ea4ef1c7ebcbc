"""The noise of a Gaussian likelihood, fitted after the fact.

An auto-encoder is trained on the squared error, which is a likelihood N(g(z), σ² I) whose σ
changes nothing but the unit; σ = 1 is written. As a density σ matters much. Given the codes its
maximum likelihood is the residual's,

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
from vilvm.lvm import ContractError, Wrapped, fixed_beside
from vilvm.weights import find_layout, posterior_mean, predict
from vilvm.wrappers._handlers import Substitute

__all__ = ["WithLikelihoodScale", "fit_likelihood_scale"]

_ROWS = 1000


class WithLikelihoodScale(Wrapped):
    """A latent variable model with another scale of its Gaussian likelihood; see
    ``fit_likelihood_scale``.
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
        """As it was."""
        return self.inner_guide(batch)

    def _rescale(self, old: Any) -> Any:
        return dist.Normal(old.mean, self.scale).to_event(old.event_dim)


@torch.no_grad()
def fit_likelihood_scale(
    lvm: Any, data: Any, *, num_samples: int = 1, seed: int = 0
) -> WithLikelihoodScale:
    """The model with σ of its Gaussian likelihood at its maximum likelihood given the codes.
    Shares its parameters with `lvm`.

    The codes are the posterior means: right for an auto-encoder; for a stochastic guide σ is then
    smaller than what its ELBO asks for.

    Arguments:
        lvm: a trained model of one observed site, Gaussian.
        data: the training data; a fresh transform is drawn once.
        num_samples: draws over which a posterior mean is taken that is not known in closed form.
        seed: of these draws, and of the transform.

    Raises:
        ValueError: the data are reproduced without any residual.
        ContractError: the model observes several sites, one that is not Gaussian, or one of
            another shape than a datum.

    Example:
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
    with seeded(seed, fixed.device):
        return _fit_noise(lvm, fixed, num_samples)


def _fit_noise(lvm: Any, fixed: Data, num_samples: int) -> WithLikelihoodScale:
    layout = find_layout(lvm, (fixed.subset(slice(0, 2)) if fixed.divisible else fixed).x)
    site = layout.observed[0]
    if len(layout.observed) != 1 or layout.families[site] != "Normal":
        raise ContractError(
            "fit_likelihood_scale needs a model of one Gaussian observation; "
            f"{type(lvm).__name__} observes {layout.families}."
        )
    residuals = [_residual(lvm, part.x, site, num_samples) for part in fixed.parts(_ROWS)]
    mean_square = torch.stack([r.double().square().sum() for r in residuals]).sum() / sum(
        r.numel() for r in residuals
    )
    if not bool(mean_square > 0):
        raise ValueError(
            "fit_likelihood_scale: the data are reproduced exactly, so that the noise has no "
            "scale; take more data, or fewer dimensions."
        )
    return WithLikelihoodScale(lvm, site, mean_square.sqrt().to(residuals[0]))


def _residual(lvm: Any, batch: Any, site: str, num_samples: int) -> torch.Tensor:
    mean = predict(lvm, posterior_mean(lvm, batch, num_samples))[site]
    if not isinstance(batch, torch.Tensor) or mean.shape != batch.shape:
        raise ContractError(
            f"fit_likelihood_scale: site {site!r} has shape {tuple(mean.shape)}, which is not "
            "that of the data."
        )
    return batch - mean
