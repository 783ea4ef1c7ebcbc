"""Paths from one code to another, and the data that a model decodes along them.

Between codes a and b, at t from 0 to 1:

- the line:          (1 − t) a + t b;
- the great circle:  a rotated into b about a centre, the length changing linearly. Draws from
  N(0, I) in many dimensions d all have a length near √d. The middle of a line between two draws is
  shorter by a factor near √½, and so is an unlikely draw; points of the circle keep the length.

Between data themselves the line is a cross-fade, the baseline to beat.

Reference: Sampling Generative Networks, Tom White, 2016.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm.lvm import ContractError, LatentVariableModel, check_contract
from vilvm.weights import posterior_mean
from vilvm.weights.prediction import predicted_means

__all__ = ["Path", "great_circle", "interpolate", "line"]

Path = Callable[[Tensor, Tensor, int], Tensor]


def line(first: Tensor, second: Tensor, steps: int = 11) -> Tensor:
    """Points on the straight line from `first` to `second`, both included.

    Arguments:
        first: codes, shape (num_pairs, ...).
        second: codes, shape (num_pairs, ...).
        steps: points per pair, at least 2.

    Returns:
        Codes, shape (num_pairs, steps, ...).

    Raises:
        ValueError: the ends differ in shape or are not finite, or steps is below 2.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import line
        >>> line(torch.zeros(1, 1), torch.ones(1, 1), steps=3).flatten()
        tensor([0.0000, 0.5000, 1.0000])
    """
    steps = _check("line", first, second, steps)
    t = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device)
    t = t.reshape(-1, *[1] * (first.dim() - 1))
    return torch.lerp(first.unsqueeze(1), second.unsqueeze(1), t)


def great_circle(
    first: Tensor,
    second: Tensor,
    steps: int = 11,
    mean: Tensor | None = None,
    scale_tril: Tensor | None = None,
) -> Tensor:
    """Points on the great circle from `first` to `second`, both included.

    For a latent that is N(0, I), or N(mean, L Lᵀ). Opposite directions, or a code at the centre,
    define no unique circle; the path is then the line.

    Arguments:
        first: codes, shape (num_pairs, d).
        second: codes, shape (num_pairs, d).
        steps: points per pair, at least 2.
        mean: mean of the latent's Gaussian prior, shape (d,); 0 by default.
        scale_tril: Cholesky factor L of its covariance, shape (d, d); I by default.

    Returns:
        Codes, shape (num_pairs, steps, d).

    Raises:
        ValueError: the ends differ in shape or are not finite, or steps is below 2.

    Reference: Sampling Generative Networks, Tom White, 2016.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import great_circle
        >>> great_circle(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), steps=3)[0, 1]
        tensor([1.4142, 1.4142])
    """
    steps = _check("great_circle", first, second, steps)
    if first.dim() != 2:
        raise ValueError(
            f"great_circle: codes must be of shape (num_pairs, d); got {tuple(first.shape)}."
        )
    if mean is None and scale_tril is None:
        return _turn(first, second, steps)
    if mean is None:
        mean = torch.zeros_like(first[0])
    if scale_tril is None:
        scale_tril = torch.eye(first.shape[1]).to(first)
    white = [
        torch.linalg.solve_triangular(scale_tril, (codes - mean).T, upper=False).T
        for codes in (first, second)
    ]
    return _turn(white[0], white[1], steps) @ scale_tril.T + mean


def _turn(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Points on the great circle about the origin."""
    lengths = [codes.norm(dim=-1, keepdim=True) for codes in (first, second)]
    smallest = torch.finfo(first.dtype).tiny
    units = [
        codes / length.clamp(min=smallest)
        for codes, length in zip((first, second), lengths, strict=True)
    ]
    # For close unit vectors, the chord gives the angle accurately; the inner product does not.
    angle = (
        2
        * torch.asin((0.5 * (units[0] - units[1]).norm(dim=-1)).clamp(max=1))[
            :, None, None
        ]
    )
    t = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device)[:, None]
    sine = angle.sin()
    turned = (
        ((1 - t) * angle).sin() * units[0].unsqueeze(1)
        + (t * angle).sin() * units[1].unsqueeze(1)
    ) / sine.clamp(min=smallest)
    straight = line(first, second, steps)
    bent = turned * torch.lerp(lengths[0].unsqueeze(1), lengths[1].unsqueeze(1), t)
    no_circle = (sine < 1e-3) | (lengths[0] * lengths[1] == 0).unsqueeze(1)
    return torch.where(no_circle, straight, bent)


@torch.no_grad()
def interpolate(
    lvm: LatentVariableModel,
    first: Tensor,
    second: Tensor,
    steps: int = 11,
    path: Path = line,
    *,
    num_samples: int = 1,
) -> Tensor:
    """E[x | z] along a path between the posterior means of two data.

    Arguments:
        lvm: a model of one latent vector and one observed site a datum.
        first: data, shape (num_pairs, ...).
        second: data, shape (num_pairs, ...).
        steps: points per pair, both ends included.
        path: ``line``, ``great_circle``, or another function of two codes and a number of steps.
        num_samples: draws that estimate a posterior mean without a closed form.

    Returns:
        Means of the data, shape (num_pairs, steps, ...).

    Raises:
        ContractError: the model has several latents or observed sites, or its latent is not one
            vector a datum.
        ValueError: the ends differ in shape or are not finite, or an option is out of range.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import great_circle, interpolate
        >>> from vilvm.models.vae import VAE
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> interpolate(lvm, x[:2], x[2:], steps=5, path=great_circle).shape
        torch.Size([2, 5, 6])
    """
    check_contract(lvm)
    steps = check_number("interpolate: steps", steps, 2)
    num_samples = check_number("interpolate: num_samples", num_samples)
    if not callable(path):
        raise ValueError(
            "interpolate: path must be a function, such as vilvm.evaluation.line; "
            f"got a {type(path).__name__}."
        )
    _check_tensors("interpolate", first, second)
    if first.shape != second.shape:
        raise ValueError(
            f"interpolate: the ends must be of one shape; got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    latents = posterior_mean(lvm, torch.cat([first, second]), num_samples)
    name, codes = next(iter(latents.items()))
    if len(latents) != 1 or codes.dim() != 2 or len(codes) != 2 * len(first):
        shapes = {n: tuple(v.shape) for n, v in latents.items()}
        raise ContractError(
            "interpolate needs a model of one latent, a vector for each datum; this one has "
            f"{shapes}."
        )
    points = path(codes[: len(first)], codes[len(first) :], steps)
    means = predicted_means(lvm, {name: points.flatten(0, 1)})
    if len(means) != 1:
        raise ContractError(
            f"interpolate needs a model of one observed site; this one has {sorted(means)}."
        )
    return next(iter(means.values())).unflatten(0, (len(first), steps))


def _check_tensors(who: str, first: Any, second: Any) -> None:
    for name, ends in (("first", first), ("second", second)):
        real = isinstance(ends, Tensor) and ends.is_floating_point()
        if not real or not bool(ends.isfinite().all()):
            raise ValueError(
                f"{who}: {name} must be a tensor of finite real numbers; the given "
                f"{type(ends).__name__} is not."
            )


def _check(who: str, first: Tensor, second: Tensor, steps: int) -> int:
    steps = check_number(f"{who}: steps", steps, least=2)
    _check_tensors(who, first, second)
    if first.shape != second.shape or first.dim() < 2:
        raise ValueError(
            f"{who}: the ends must be of one shape (num_pairs, ...); got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    return steps
