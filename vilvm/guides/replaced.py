"""A model with another guide: its decoder and prior frozen, q(z | x) a Gaussian that an encoder gives, to be fitted.

This is what makes a number of "an auto-encoder as a generative model": put a prior on its codes (``vilvm.priors``), freeze it and the
decoder, and fit a stochastic guide; then the ELBO and the importance-weighted bound are those of a proper model of x, whose only
fault is the auto-encoder's own.
"""

import copy
from typing import Any

import pyro
import torch

from vilvm.data import tensors_of
from vilvm.guides.normal import normal
from vilvm.lvm import ContractError

__all__ = ["WithGuide", "with_guide"]


class WithGuide(torch.nn.Module):
    """A frozen model under a new amortised guide; see ``with_guide``."""

    lvm: Any

    def __init__(self, lvm: torch.nn.Module, encoder: torch.nn.Module, latent: str, plate: str):
        super().__init__()
        self.lvm = copy.deepcopy(lvm).requires_grad_(False).eval()
        self.encoder, self.latent, self.plate = encoder, latent, plate

    def train(self, mode: bool = True) -> "WithGuide":
        """As of any module, but for the frozen model, which stays in evaluation mode."""
        super().train(mode)
        self.lvm.eval()
        return self

    def model(self, batch: Any) -> Any:
        """p(x | z) p(z), as it was."""
        return self.lvm.model(batch)

    def guide(self, batch: Any) -> None:
        """q(z | x) = N(m(x), diag s²(x)), the encoder's output being m and log s²."""
        x = tensors_of(batch)[0]
        out = self.encoder(x)
        if out.shape[-1] % 2:
            raise ContractError(
                f"with_guide: the encoder gives {out.shape[-1]} numbers a datum; it must give a mean and a log-variance each."
            )
        with pyro.plate(self.plate, len(x)):
            pyro.sample(self.latent, normal(out))


def with_guide(lvm: torch.nn.Module, encoder: torch.nn.Module, *, latent: str = "z", plate: str = "data") -> WithGuide:
    """The model, frozen, under a new guide, which ``vilvm.fit`` then trains.

    Arguments:
        lvm: a model of one latent vector for each datum, with a proper prior; copied, so that it stays as it is.
        encoder: maps the (first) tensor of a batch to the mean and log-variance of the latent, side by side.
        latent: its name.
        plate: the name of the model's plate over the data.

    Example:
        >>> import torch, vilvm
        >>> from models.autoencoder import Autoencoder
        >>> from vilvm.guides import with_guide
        >>> from vilvm.networks import mlp
        >>> from vilvm.priors import fit_prior, with_prior
        >>> auto, x = Autoencoder(data_dim=6, latent_dim=2), torch.rand(50, 6)
        >>> lvm = with_guide(with_prior(auto, fit_prior(auto, x)), mlp(6, (16,), 4))
        >>> fitted = vilvm.fit(lvm, x, steps=50)
        >>> sorted(vilvm.evaluate(lvm, x, num_samples=10).bounds)
        ['elbo', 'iwae']
    """
    return WithGuide(lvm, encoder, latent, plate)
