"""A frozen model with another guide, q(z | x) a Gaussian whose parameters an encoder computes.

An auto-encoder is evaluated as a generative model in three steps: fit a prior to its codes
(``vilvm.priors``), freeze the prior and the decoder, and fit a stochastic guide. The ELBO and the
importance-weighted bound are then those of a proper model of x.
"""

import copy
from collections.abc import Sequence
from typing import Any

import pyro
import torch

from vilvm._runtime.argument_checks import (
    check_number,
    check_positive,
    check_seed,
    check_sizes,
)
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.guides.normal import normal
from vilvm.lvm import ContractError, Wrapped, data_beside, device_of, rebuildable
from vilvm.networks import mlp
from vilvm.training import Fit, fit, one_cycle
from vilvm.weights import Layout, find_layout
from vilvm.weights.guide_draws import latent_draws
from vilvm.wrappers._handlers import CaptureSite

__all__ = ["WithGuide", "fit_guide", "with_guide"]

_FIRST = 500  # data from which the spread of the codes is estimated


@rebuildable
class WithGuide(Wrapped):
    """A frozen model with a new amortised guide; see ``with_guide``.

    Arguments:
        lvm: the inner model, copied and frozen.
        encoder: maps the first tensor of a batch to the mean and log-variance of the latent.
        latent: the name of the latent.
        plate: the name of the plate over the data.
        dim: the dimension of that plate, or None.
        around: whether the encoder's mean is added to that of the inner guide.

    Raises:
        ContractError: `encoder` or `lvm` is not a ``torch.nn.Module``.

    Examples:
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.networks import mlp
        >>> from vilvm.wrappers import WithGuide
        >>> lvm = WithGuide(PPCA(3, 1), mlp(3, (8,), 2), "z", plate="data", dim=None, around=False)
        >>> any(p.requires_grad for p in lvm.lvm.parameters())
        False
    """

    keeps_model = True

    def __init__(
        self,
        lvm: torch.nn.Module,
        encoder: torch.nn.Module,
        latent: str,
        *,
        plate: str,
        dim: int | None,
        around: bool,
    ):
        if not isinstance(encoder, torch.nn.Module):
            raise ContractError(
                f"with_guide: encoder must be a torch.nn.Module; got {encoder!r}."
            )
        super().__init__(copy.deepcopy(lvm), frozen=True)
        self.lvm.requires_grad_(False).eval()
        self.encoder, self.latent = encoder, latent
        self.plate, self.dim = plate, dim
        self.around = around
        self.keeps_guide = around

    def train(self, mode: bool = True) -> "WithGuide":
        """Sets the mode of the encoder; the frozen model stays in evaluation mode."""
        super().train(mode)
        self.lvm.eval()
        return self

    def model(self, batch: Any) -> Any:
        """p(x | z) p(z), the inner model."""
        return self.inner_model(batch)

    def guide(self, batch: Any) -> None:
        """q(z | x) = N(m(x), diag s²(x)).

        The encoder's output is m and log s²; with `around` its mean is added to the inner guide's.
        """
        x = tensors_of(batch)[0]
        out = self.encoder(x)
        if out.shape[-1] % 2:
            raise ContractError(
                f"with_guide: the encoder returns {out.shape[-1]} numbers per datum; it must "
                "return a mean and a log-variance for each latent dimension."
            )
        if self.around:
            mean, log_variance = out.chunk(2, dim=-1)
            out = torch.cat([self._inner_mean(batch) + mean, log_variance], -1)
        with pyro.plate(self.plate, len(x), dim=self.dim):
            pyro.sample(self.latent, normal(out))

    def _inner_mean(self, batch: Any) -> torch.Tensor:
        with CaptureSite(self.latent) as inner:
            self.inner_guide(batch)
        if inner.fn is None:
            raise ContractError(
                f"with_guide: {type(self.lvm).__name__} has no guide for latent "
                f"{self.latent!r} to start around."
            )
        return inner.fn.mean


def with_guide(
    lvm: torch.nn.Module,
    encoder: torch.nn.Module,
    *,
    latent: str = "z",
    plate: str = "data",
    dim: int | None = None,
    around: bool = False,
) -> WithGuide:
    """A frozen copy of a model with a new guide, to be trained by ``vilvm.fit``.

    Arguments:
        lvm: a model with one latent vector for each datum and a proper prior. It is copied; a
            network that its functions refer to and that is not a submodule is shared.
        encoder: maps the (first) tensor of a batch to the mean and log-variance of the latent,
            concatenated.
        latent: the name of the latent.
        plate: the name of the model's plate over the data.
        dim: the dimension of that plate, if the model sets one.
        around: whether the encoder's mean is added to that of the model's own guide, such as an
            auto-encoder's code; the posterior then starts there.

    Returns:
        The model with the new guide.

    Raises:
        ContractError: `encoder` or `lvm` is not a ``torch.nn.Module``.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.autoencoder import Autoencoder
        >>> from vilvm.networks import mlp
        >>> from vilvm.priors import fit_prior
        >>> from vilvm.wrappers import with_guide, with_prior
        >>> auto, x = Autoencoder(data_dim=6, latent_dim=2), torch.rand(50, 6)
        >>> lvm = with_guide(with_prior(auto, fit_prior(auto, x)), mlp(6, (16,), 4))
        >>> fitted = vilvm.fit(lvm, x, steps=50)
        >>> sorted(vilvm.evaluate(lvm, x, num_samples=10).bounds)
        ['elbo', 'iwae']
    """
    return WithGuide(lvm, encoder, latent, plate=plate, dim=dim, around=around)


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
    """Fits a stochastic guide to a frozen copy of a model.

    It calls ``with_guide``, then ``vilvm.fit`` with a one-cycle learning rate.

    Arguments:
        lvm: a model with one latent vector for each datum and a proper prior; copied.
        data: the training data.
        encoder: maps the (first) tensor of a batch to the mean and log-variance of the latent,
            concatenated. By default a new perceptron; for an auto-encoder it starts close to the
            codes.
        hidden: sizes of that perceptron's hidden layers.
        epochs: number of passes over the data.
        batch_size: number of data per step.
        lr: peak learning rate of Adam.
        seed: of the perceptron's initial weights and of the training.
        options: further arguments of ``vilvm.fit``, such as validation, run_dir or progress.

    Returns:
        The model with its new guide, and the result of ``vilvm.fit``.

    Raises:
        ContractError: the model has another latent than one vector for each datum, or a flat
            prior.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.autoencoder import Autoencoder
        >>> from vilvm.priors import fit_prior
        >>> from vilvm.wrappers import fit_guide, with_prior
        >>> auto, x = Autoencoder(data_dim=6, latent_dim=2), torch.rand(50, 6)
        >>> lvm, fitted = fit_guide(with_prior(auto, fit_prior(auto, x)), x, epochs=2)
        >>> sorted(vilvm.evaluate(lvm, x, num_samples=10).bounds)
        ['elbo', 'iwae']
    """
    seed = check_seed("fit_guide: seed", seed)
    lr = check_positive("fit_guide: lr", lr)
    hidden = check_sizes("fit_guide: hidden", hidden)
    train = data_beside(lvm, data, "training data")
    epochs = check_number("fit_guide: epochs", epochs)
    batch_size = check_number("fit_guide: batch_size", batch_size)
    where = device_of(lvm, train.device)
    with seeded(seed, where, "training"):
        guided = _with_new_guide(lvm, train, encoder, hidden, where)
    batch_size = min(batch_size, len(train))
    steps = epochs * -(-len(train) // batch_size)
    options = {**one_cycle(lr, steps), "clip": 100.0, **options}
    fitted = fit(
        guided, train, epochs=epochs, batch_size=batch_size, seed=seed, **options
    )
    return guided, fitted


def _with_new_guide(
    lvm: Any,
    train: Data,
    encoder: torch.nn.Module | None,
    hidden: Sequence[int],
    device: torch.device,
) -> WithGuide:
    """The model with an untrained guide that fits the layout of its first data."""
    batch = train.subset(slice(0, min(_FIRST, len(train)))).to(device).model_input()
    layout = find_layout(lvm, batch)
    latent, code = _code(lvm, batch, layout)
    around = encoder is None and latent in layout.degenerate
    if encoder is None:
        encoder = _perceptron(batch, hidden, code)
        if around:
            _start_close(encoder[-1], code[0])
    return with_guide(
        lvm,
        encoder,
        latent=latent,
        plate=layout.data_plate or "data",
        dim=layout.data_dim,
        around=around,
    ).to(device)


def _code(lvm: Any, batch: Any, layout: Layout) -> tuple[str, torch.Tensor]:
    """The name of the latent, and a draw from the guide, shape (1, num_data, d)."""
    if layout.improper:
        raise ContractError(
            f"fit_guide: the prior of latent {layout.improper[0]!r} is flat, so there is no "
            "posterior to fit a guide to; give the model a prior first (fit_prior, with_prior)."
        )
    codes = latent_draws(lvm, batch, 1)
    if not layout.local or len(codes) != 1 or codes[layout.latents[0]].dim() != 3:
        shapes = {name: tuple(code.shape[1:]) for name, code in codes.items()}
        raise ContractError(
            "fit_guide needs a model with one latent, a vector for each datum; for "
            f"{layout.num_data} data its latents have shapes {shapes}."
        )
    if layout.scale != 1:
        raise ContractError(
            f"fit_guide: the model scales its plate {layout.data_plate!r} by "
            f"{layout.scale:g}; give it the batch's own size, pyro.plate(name, len(x))."
        )
    return next(iter(codes.items()))


def _perceptron(
    batch: Any, hidden: Sequence[int], code: torch.Tensor
) -> torch.nn.Sequential:
    x = tensors_of(batch)[0]
    if x.dim() != 2:
        raise ContractError(
            f"fit_guide: a datum has shape {tuple(x.shape[1:])} and is not a row of numbers; pass "
            "encoder=..., a network for it."
        )
    return mlp(x.shape[-1], hidden, 2 * code.shape[-1]).to(code)


@torch.no_grad()
def _start_close(last: Any, codes: torch.Tensor) -> None:
    """Sets an encoder's last layer to mean 0 and a seventh of the codes' standard deviation."""
    last.weight.zero_()
    variance = torch.ones_like(codes[0])
    if len(codes) > 1:
        variance = codes.var(0).clamp(min=1e-8)
    last.bias.copy_(torch.cat([torch.zeros_like(variance), variance.log() - 4]))
