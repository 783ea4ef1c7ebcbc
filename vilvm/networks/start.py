"""Initialisation of an output layer, so that an untrained decoder returns the data's mean."""

import torch
from torch import Tensor, nn

__all__ = ["start_at_mean"]


@torch.no_grad()
def start_at_mean(layer: nn.Module, mean: Tensor, likelihood: str) -> None:
    """Sets the bias of a decoder's last layer to the data's mean, or to its logit.

    Training then needs no passes over the data to find the mean.

    Arguments:
        layer: a layer with a bias; if it has more outputs than `mean` (a variance head), the first
            ones are set.
        mean: of the training data, shape (data_dim,).
        likelihood: "bernoulli" (mean in [0, 1]; the layer's outputs are logits) or "gaussian".

    Raises:
        ValueError: `layer` has no bias, `mean` is not finite or no vector, or `likelihood` is
            unknown.

    Reference: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.

    Examples:
        >>> import torch
        >>> from vilvm.networks import start_at_mean
        >>> layer = torch.nn.Linear(2, 3)
        >>> start_at_mean(layer, torch.full((3,), 0.5), "bernoulli")
        >>> layer.bias.tolist()
        [0.0, 0.0, 0.0]
    """
    if not isinstance(layer, nn.Module) or not isinstance(
        getattr(layer, "bias", None), Tensor
    ):
        raise ValueError(
            f"start_at_mean: layer must be a network with a bias; got a {type(layer).__name__}."
        )
    if not _is_finite_vector(mean):
        raise ValueError(
            "start_at_mean: mean must be a tensor of finite real numbers, of shape (data_dim,)."
        )
    if likelihood not in ("bernoulli", "gaussian"):
        raise ValueError(
            f"start_at_mean: unknown likelihood {likelihood!r}; choose 'bernoulli' or 'gaussian'."
        )
    if likelihood == "bernoulli":
        mean = mean.clamp(0.001, 0.999).logit()
    layer.get_parameter("bias")[: len(mean)] = mean


def _is_finite_vector(value: object) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.dim() == 1 and bool(value.isfinite().all())
