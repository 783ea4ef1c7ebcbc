"""Reconstruction: a datum encoded and decoded again.

    x̂ = E[x | z = E_q[z | x]],    SSE(x) = ‖x − x̂‖²,    PSNR = 10 log₁₀(peak² D / E[SSE])

For an auto-encoder x̂ = g(f(x)). SSE is in squared units of the data and PSNR in decibels. Neither
measures the likelihood.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import (
    check_number,
    check_positive,
    check_seed,
    check_tensor,
)
from vilvm._runtime.random import seeded
from vilvm.evaluation.estimates import Estimate
from vilvm.lvm import ContractError, LatentVariableModel, fixed_beside
from vilvm.weights import posterior_mean
from vilvm.weights.prediction import predicted_means

__all__ = ["Decibels", "psnr", "reconstruct", "squared_error"]

_ROWS = 1000


@torch.no_grad()
def reconstruct(
    lvm: LatentVariableModel, batch: Tensor, num_samples: int = 1
) -> Tensor:
    """x̂ of every datum of a batch, in the batch's shape.

    Arguments:
        lvm: a model of one observed site of the batch's shape.
        batch: shape (num_data, ...).
        num_samples: draws that estimate a posterior mean without a closed form.

    Returns:
        Reconstructions, of the batch's shape.

    Raises:
        ContractError: the model observes several sites, or one of another shape.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import reconstruct
        >>> from vilvm.models.vae import VAE
        >>> reconstruct(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6)).shape
        torch.Size([9, 6])
    """
    if not isinstance(batch, Tensor):
        raise ContractError(
            f"reconstruct: the batch is a {type(batch).__name__}, not one tensor; for "
            "pairs (corrupted, clean), pass only the corrupted data."
        )
    means = predicted_means(lvm, posterior_mean(lvm, batch, num_samples), like=batch)
    found = [mean for mean in means.values() if mean.shape == batch.shape]
    if len(means) != 1 or not found:
        shapes = {name: tuple(mean.shape) for name, mean in means.items()}
        raise ContractError(
            f"reconstruct: the model observes {shapes}, not one site of the batch's shape "
            f"{tuple(batch.shape)}."
        )
    return found[0]


@torch.no_grad()
def squared_error(
    lvm: LatentVariableModel, data: object, num_samples: int = 1, seed: int = 0
) -> Estimate:
    """Squared error of the reconstruction, summed over each datum.

    Arguments:
        lvm: a model of one observed site of the data's shape.
        data: ``Data`` or a tensor, with one datum per row; a transform is drawn once from `seed`.
        num_samples: draws that estimate a posterior mean without a closed form.
        seed: seed of the draws and the transform.

    Returns:
        Estimate, in squared units of the data, shape (num_data,). Its Monte Carlo errors are 0,
        which is exact if the posterior mean has a closed form.

    Raises:
        ContractError: the data are not one tensor, or the model observes something else.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.evaluation import squared_error
        >>> squared_error(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6)).values.shape
        torch.Size([9])
    """
    seed = check_seed("squared_error: seed", seed)
    num_samples = check_number("squared_error: num_samples", num_samples)
    fixed = fixed_beside(lvm, data, seed)
    parts = [part.x for part in fixed.chunks(_ROWS)]
    if any(not isinstance(x, Tensor) for x in parts):
        raise ContractError(
            "squared_error: the data are not one tensor; pass one tensor, with one datum per row."
        )
    errors = []
    with seeded(seed, fixed.device):
        for x in parts:
            residual = (x - reconstruct(lvm, x, num_samples)).double()
            errors.append(residual.square().reshape(len(x), -1).sum(1))
    values = torch.cat(errors).cpu()
    return Estimate(values, torch.zeros_like(values))


class Decibels(NamedTuple):
    """A ratio in decibels.

    Arguments:
        value: the ratio.
        se: its standard error as an estimate for new data, by the delta method.

    Examples:
        >>> from vilvm.evaluation import Decibels
        >>> Decibels(value=20.0, se=0.1).value
        20.0
    """

    value: float
    se: float


def psnr(restored: Tensor, clean: Tensor, peak: float = 1.0) -> Decibels:
    """Peak signal-to-noise ratio of a set of pictures: 10 log₁₀(peak² / MSE).

    MSE is the mean over all pictures: a mean of ratios would be infinite if a single picture were
    restored exactly.

    Arguments:
        restored: pictures, shape (num_data, ...).
        clean: pictures, shape (num_data, ...).
        peak: the largest value a pixel can have.

    Returns:
        Decibels; infinite, with a standard error of NaN, if there is no error.

    Raises:
        ValueError: the shapes differ, or a tensor is not finite.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import psnr
        >>> round(psnr(torch.full((2, 9), 0.1), torch.zeros(2, 9)).value, 3)
        20.0
    """
    peak = check_positive("psnr: peak", peak)
    check_tensor("psnr: restored", restored)
    check_tensor("psnr: clean", clean)
    if restored.shape != clean.shape:
        raise ValueError(
            f"psnr: restored has shape {tuple(restored.shape)}, clean {tuple(clean.shape)}; they "
            "must be equal."
        )
    errors = (restored - clean).double().square().flatten(1).mean(1)
    mse = errors.mean().item()
    if mse == 0:
        return Decibels(math.inf, math.nan)
    relative = math.nan
    if len(errors) > 1:
        relative = errors.std().item() / len(errors) ** 0.5 / mse
    return Decibels(10 * math.log10(peak**2 / mse), 10 / math.log(10) * relative)
