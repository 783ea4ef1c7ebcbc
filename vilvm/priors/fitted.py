"""Fitted priors p̂(z): a density put on the codes of a trained model.

The codes are draws from the aggregated posterior, one a datum,

    q(z) = E_x q(z | x),

which for an auto-encoder are its codes f(x) themselves. p̂ is the density of a family that is likeliest on them:

- "diagonal": N(μ̂, diag σ̂²), the naive baseline "fit a Gaussian to the codes and sample";
- "full":     N(μ̂, Σ̂);
- "mixture":  Σₖ πₖ N(μₖ, Σₖ), by expectation maximisation (scikit-learn).

For a variational auto-encoder, of whose ELBO −KL(q(z) ‖ p(z)) is a term, a fitted prior says what the prior alone costs.

Reference: ELBO surgery: yet another way to carve up the variational evidence lower bound, Hoffman and Johnson, 2016.
"""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm.data import as_data, seeded
from vilvm.lvm import ContractError, LatentVariableModel
from vilvm.weights import layout, posterior

__all__ = ["FittedPrior", "fit_prior"]

_ROWS = 1000
_SMALLEST = 1e-6  # of a variance, relative to the codes' largest


class FittedPrior(nn.Module):
    """A density of one latent vector, its parameters fixed as buffers.

    Arguments:
        latent: the name of the latent it is a prior of.
        kind: "diagonal", "full" or "mixture".
        parameters: tensors by name, those of the density of that kind.
    """

    def __init__(self, latent: str, kind: str, parameters: dict[str, Tensor]):
        super().__init__()
        self.latent, self.kind = latent, kind
        for name, value in parameters.items():
            self.register_buffer(name, value)

    def distribution(self) -> dist.TorchDistribution:
        """p̂(z), of batch shape () and event shape (d,)."""
        if self.kind == "diagonal":
            return dist.Normal(self.get_buffer("mean"), self.get_buffer("scale")).to_event(1)
        normal = dist.MultivariateNormal(self.get_buffer("mean"), scale_tril=self.get_buffer("scale_tril"))
        return normal if self.kind == "full" else dist.MixtureSameFamily(dist.Categorical(self.get_buffer("weights")), normal)

    def extra_repr(self) -> str:
        """Its kind and latent, for ``repr``."""
        return f"{self.kind} of {self.latent!r}"


def fit_prior(
    lvm: LatentVariableModel, data: Any, kind: str = "full", *, components: int = 10, latent: str | None = None, seed: int = 0
) -> FittedPrior:
    """Fits a prior to the codes that a trained model gives its training data.

    Arguments:
        lvm: the trained model; its latent stands in the plate over the data.
        data: the training data; a fresh transform is drawn once.
        kind: "diagonal", "full" or "mixture".
        components: of a mixture.
        latent: which latent, if there are several; a vector for each datum.
        seed: of the draws of codes, the transform, and the start of a mixture.

    Returns:
        FittedPrior, where the model is.

    Raises:
        ValueError: an unknown kind, or fewer codes than the density needs.
        ContractError: no such latent, or one that is no vector of a datum.

    Example:
        >>> import torch
        >>> from models.autoencoder import Autoencoder
        >>> from vilvm.priors import fit_prior
        >>> fit_prior(Autoencoder(data_dim=6, latent_dim=2), torch.rand(50, 6), "diagonal").distribution().event_shape
        torch.Size([2])
    """
    kinds: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
        "diagonal": _diagonal,
        "full": _full,
        "mixture": lambda z: _mixture(z, components, seed),
    }
    if kind not in kinds:
        raise ValueError(f"fit_prior: unknown kind {kind!r}; choose from {list(kinds)}.")
    name, codes = _codes(lvm, data, latent, seed)
    needed = components if kind == "mixture" else 2
    if len(codes) < needed:
        raise ValueError(f"fit_prior: a {kind} prior needs at least {needed} data; got {len(codes)}.")
    parameters = kinds[kind](codes.double())
    return FittedPrior(name, kind, {n: v.to(codes) for n, v in parameters.items()})


@torch.no_grad()
def _codes(lvm: LatentVariableModel, data: Any, latent: str | None, seed: int) -> tuple[str, Tensor]:
    given = as_data(data)
    fixed = given.fixed(seed)
    names = layout(lvm, fixed.subset(slice(0, min(2, len(fixed)))).x).latents
    name = latent if latent is not None else names[0] if len(names) == 1 else None
    if name is None or name not in names:
        raise ContractError(f"fit_prior: the latents are {list(names)}; say which with latent=..., one of them.")
    with seeded(seed, fixed.device):
        parts = [posterior(lvm, part.x)[name][0] for part in fixed.parts(_ROWS)]
    if any(part.dim() != 2 for part in parts):
        raise ContractError(
            f"fit_prior: latent {name!r} has shape {tuple(parts[0].shape)}, and not that of one vector for each datum."
        )
    return name, torch.cat(parts)


def _diagonal(z: Tensor) -> dict[str, Tensor]:
    variance = z.var(0, correction=0)
    return {"mean": z.mean(0), "scale": variance.clamp(min=_SMALLEST * variance.max()).sqrt()}


def _full(z: Tensor) -> dict[str, Tensor]:
    cov = torch.cov(z.T, correction=0).reshape(z.shape[1], -1)
    floor = _SMALLEST * cov.diagonal().max() * torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
    return {"mean": z.mean(0), "scale_tril": torch.linalg.cholesky(cov + floor)}


def _mixture(z: Tensor, components: int, seed: int) -> dict[str, Tensor]:
    from sklearn.mixture import GaussianMixture  # here, for it takes seconds to import

    floor = _SMALLEST * float(z.var(0, correction=0).max())
    found = GaussianMixture(components, reg_covar=floor, random_state=seed).fit(z.cpu().numpy())
    return {
        "weights": torch.from_numpy(found.weights_),
        "mean": torch.from_numpy(found.means_),
        "scale_tril": torch.linalg.cholesky(torch.from_numpy(found.covariances_)),
    }
