"""Where training starts: an output layer that gives the data's mean before anything is learnt."""

import torch
from torch import Tensor, nn

__all__ = ["start_at_mean"]


@torch.no_grad()
def start_at_mean(layer: nn.Module, mean: Tensor, likelihood: str) -> None:
    """Sets the bias of a decoder's last layer to the data's mean, or to its logit, which spares
    the first passes over the data.

    As in Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.

    Arguments:
        layer: with a bias; of one that has more outputs than `mean` (a variance head behind), the
            first are set.
        mean: of the training data, shape (data_dim,).
        likelihood: "bernoulli" (mean in [0, 1], the layer's outputs being logits) or "gaussian".

    Example:
        >>> import torch
        >>> from vilvm.networks import start_at_mean
        >>> layer = torch.nn.Linear(2, 3)
        >>> start_at_mean(layer, torch.full((3,), 0.5), "bernoulli")
        >>> layer.bias.tolist()
        [0.0, 0.0, 0.0]
    """
    if not isinstance(layer, nn.Module) or not isinstance(getattr(layer, "bias", None), Tensor):
        raise ValueError(
            f"start_at_mean: layer must be a network with a bias; got a {type(layer).__name__}."
        )
    if (
        not isinstance(mean, Tensor)
        or not mean.is_floating_point()
        or mean.dim() != 1
        or not bool(mean.isfinite().all())
    ):
        raise ValueError(
            "start_at_mean: mean must be a tensor of finite real numbers, of shape (data_dim,)."
        )
    if likelihood not in ("bernoulli", "gaussian"):
        raise ValueError(
            f"start_at_mean: unknown likelihood {likelihood!r}; choose 'bernoulli' or 'gaussian'."
        )
    bias = layer.get_parameter("bias")
    bias[: len(mean)] = mean.clamp(0.001, 0.999).logit() if likelihood == "bernoulli" else mean
