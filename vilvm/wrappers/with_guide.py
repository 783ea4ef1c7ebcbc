"""A model with another guide: its decoder and prior frozen, q(z | x) a Gaussian that an encoder
gives, to be fitted.

This is what makes a number of "an auto-encoder as a generative model": put a prior on its codes
(``vilvm.priors``), freeze it and the decoder, and fit a stochastic guide; then the ELBO and the
importance-weighted bound are those of a proper model of x, whose only fault is the auto-encoder's
own.
"""

import copy
from collections.abc import Sequence
from typing import Any

import pyro
import torch

from vilvm._runtime.argument_checks import check_number, check_positive, check_seed, check_sizes
from vilvm._runtime.random import seeded
from vilvm.data.data import as_data
from vilvm.data.tensors import tensors_of
from vilvm.guides.normal import normal
from vilvm.lvm import ContractError, Wrapped, device_of
from vilvm.networks import mlp
from vilvm.training import Fit, fit, one_cycle
from vilvm.weights import find_layout, posterior
from vilvm.wrappers._handlers import CaptureSite

__all__ = ["WithGuide", "fit_guide", "with_guide"]

_LOOK = 500  # data by which the spread of the codes is judged


class WithGuide(Wrapped):
    """A frozen model under a new amortised guide; see ``with_guide``."""

    keeps_model = True

    def __init__(
        self,
        lvm: torch.nn.Module,
        encoder: torch.nn.Module,
        latent: str,
        plate: str,
        dim: int | None,
        around: bool,
    ):
        if not isinstance(encoder, torch.nn.Module):
            raise ContractError(f"with_guide: encoder must be a torch.nn.Module; got {encoder!r}.")
        super().__init__(copy.deepcopy(lvm), frozen=True)
        self.lvm.requires_grad_(False).eval()
        self.dim = dim
        self.encoder, self.latent, self.plate, self.around = encoder, latent, plate, around
        self.keeps_guide = around

    def train(self, mode: bool = True) -> "WithGuide":
        """As of any module, but for the frozen model, which stays in evaluation mode."""
        super().train(mode)
        self.lvm.eval()
        return self

    def model(self, batch: Any) -> Any:
        """p(x | z) p(z), as it was."""
        return self.inner_model(batch)

    def guide(self, batch: Any) -> None:
        """q(z | x) = N(m(x), diag s²(x)), the encoder's output being m, or m less the own guide's
        mean, and log s².
        """
        x = tensors_of(batch)[0]
        out = self.encoder(x)
        if out.shape[-1] % 2:
            raise ContractError(
                f"with_guide: the encoder gives {out.shape[-1]} numbers a datum; it must give a "
                "mean and a log-variance each."
            )
        if self.around:
            with CaptureSite(self.latent) as own:
                self.inner_guide(batch)
            if own.fn is None:
                raise ContractError(
                    f"with_guide: {type(self.lvm).__name__} has no guide for latent "
                    f"{self.latent!r} to start around."
                )
            mean, log_variance = out.chunk(2, dim=-1)
            out = torch.cat([own.fn.mean + mean, log_variance], -1)
        with pyro.plate(self.plate, len(x), dim=self.dim):
            pyro.sample(self.latent, normal(out))


def with_guide(
    lvm: torch.nn.Module,
    encoder: torch.nn.Module,
    *,
    latent: str = "z",
    plate: str = "data",
    dim: int | None = None,
    around: bool = False,
) -> WithGuide:
    """The model, frozen, under a new guide, which ``vilvm.fit`` then trains.

    Arguments:
        lvm: a model of one latent vector for each datum, with a proper prior; copied, so that it
            stays as it is. A network that its functions close over, and that is no part of the
            module, cannot be copied, and is shared.
        encoder: maps the (first) tensor of a batch to the mean and log-variance of the latent,
            side by side.
        latent: its name.
        plate: the name of the model's plate over the data.
        dim: its dimension, where the model gives one.
        around: whether what the encoder gives as a mean is added to that of the model's own guide,
            an auto-encoder's code for instance, from which the posterior then starts.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.autoencoder import Autoencoder
        >>> from vilvm.wrappers import with_guide
        >>> from vilvm.networks import mlp
        >>> from vilvm.priors import fit_prior
        >>> from vilvm.wrappers import with_prior
        >>> auto, x = Autoencoder(data_dim=6, latent_dim=2), torch.rand(50, 6)
        >>> lvm = with_guide(with_prior(auto, fit_prior(auto, x)), mlp(6, (16,), 4))
        >>> fitted = vilvm.fit(lvm, x, steps=50)
        >>> sorted(vilvm.evaluate(lvm, x, num_samples=10).bounds)
        ['elbo', 'iwae']
    """
    return WithGuide(lvm, encoder, latent, plate, dim, around)


def fit_guide(
    lvm: Any,
    data: Any,
    encoder: torch.nn.Module | None = None,
    *,
    hidden: Sequence[int] = (400,),
    epochs: int = 10,
    batch_size: int = 200,
    lr: float = 2e-3,
    seed: int = 0,
    **options: Any,
) -> tuple[WithGuide, Fit]:
    """Freezes a model and fits a stochastic guide to it: ``with_guide``, then ``vilvm.fit`` with a
    one-cycle learning rate.

    Arguments:
        lvm: a model of one latent vector for each datum, with a proper prior; copied, so that it
            stays as it is.
        data: the training data.
        encoder: maps the (first) tensor of a batch to the mean and log-variance of the latent,
            side by side. By default a new perceptron, which starts close around an auto-encoder's
            codes if there are such.
        hidden: sizes of that perceptron's hidden layers.
        epochs, batch_size: how long to train, and on how many data a step.
        lr: peak learning rate of Adam.
        seed: of the perceptron's start and of the training.
        options: more for ``vilvm.fit``, such as validation, run_dir or progress.

    Returns:
        The model under its new guide, and what ``vilvm.fit`` returned.

    Raises:
        ContractError: the model has not one latent, a vector for each datum; or its prior is flat.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.autoencoder import Autoencoder
        >>> from vilvm.wrappers import fit_guide
        >>> from vilvm.priors import fit_prior
        >>> from vilvm.wrappers import with_prior
        >>> auto, x = Autoencoder(data_dim=6, latent_dim=2), torch.rand(50, 6)
        >>> lvm, fitted = fit_guide(with_prior(auto, fit_prior(auto, x)), x, epochs=2)
        >>> sorted(vilvm.evaluate(lvm, x, num_samples=10).bounds)
        ['elbo', 'iwae']
    """
    seed = check_seed("fit_guide: seed", seed)
    lr = check_positive("fit_guide: lr", lr)
    hidden = check_sizes("fit_guide: hidden", hidden)
    train = as_data(data, "training data")
    epochs = check_number("fit_guide: epochs", epochs)
    batch_size = check_number("fit_guide: batch_size", batch_size)
    where = device_of(lvm, train.device)
    with seeded(seed, where):
        batch = train.subset(slice(0, min(_LOOK, len(train)))).to(where).look()
        layout = find_layout(lvm, batch)
        if layout.improper:
            raise ContractError(
                f"fit_guide: the prior of latent {layout.improper[0]!r} is flat, so there is no "
                "posterior to fit a guide to; give the model a "
                "prior first (fit_prior, with_prior)."
            )
        codes = posterior(lvm, batch)
        if not layout.local or len(codes) != 1 or codes[layout.latents[0]].dim() != 3:
            shapes = {name: tuple(code.shape[1:]) for name, code in codes.items()}
            raise ContractError(
                "fit_guide needs a model of one latent, a vector for each datum; of "
                f"{layout.num_data} data it has {shapes}."
            )
        latent, code = next(iter(codes.items()))
        around = encoder is None and latent in layout.degenerate
        if layout.scale != 1:
            raise ContractError(
                f"fit_guide: the model scales its plate {layout.data_plate!r} by "
                f"{layout.scale:g}; give it the batch's own size, pyro.plate(name, len(x))."
            )
        if encoder is None:
            x = tensors_of(batch)[0]
            if x.dim() != 2:
                raise ContractError(
                    f"fit_guide: a datum has shape {tuple(x.shape[1:])} and not that of a row; "
                    "pass encoder=..., a network for it."
                )
            encoder = mlp(x.shape[-1], hidden, 2 * code.shape[-1]).to(code)
            if around:
                _start_close(encoder[-1], code[0])
    guided = with_guide(
        lvm,
        encoder,
        latent=latent,
        plate=layout.data_plate or "data",
        dim=layout.data_dim,
        around=around,
    ).to(where)
    batch_size = min(batch_size, len(train))
    total = epochs * -(-len(train) // batch_size)
    fitted = fit(
        guided,
        train,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        **{
            **one_cycle(lr, total),
            "clip": 100.0,
            **options,
        },
    )
    return guided, fitted


@torch.no_grad()
def _start_close(last: Any, codes: torch.Tensor) -> None:
    """Sets an encoder's last layer so that it starts at a mean of 0 and at a seventh of the codes'
    own spread.
    """
    last.weight.zero_()
    variance = codes.var(0).clamp(min=1e-8) if len(codes) > 1 else torch.ones_like(codes[0])
    last.bias.copy_(torch.cat([torch.zeros_like(variance), variance.log() - 4]))
