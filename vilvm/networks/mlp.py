"""Multilayer perceptrons."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from vilvm._runtime.argument_checks import check_number, check_sizes
from vilvm._runtime.rebuildable import rebuildable

__all__ = ["mlp"]


@rebuildable
def mlp(
    in_dim: int,
    hidden: Sequence[int],
    out_dim: int,
    activation: Callable[[], nn.Module] = nn.SiLU,
) -> nn.Sequential:
    """A perceptron in_dim → hidden[0] → … → out_dim, with no activation after the last layer.

    Arguments:
        in_dim: size of the last dimension of the input; leading dimensions are free.
        hidden: sizes of the hidden layers; none makes an affine map.
        out_dim: size of the last dimension of the output.
        activation: makes one activation module.

    Returns:
        The network.

    Raises:
        ValueError: a size is not a positive integer.

    Examples:
        >>> import torch
        >>> from vilvm.networks import mlp
        >>> mlp(784, (400,), 20)(torch.zeros(5, 3, 784)).shape
        torch.Size([5, 3, 20])
    """
    in_dim = check_number("mlp: in_dim", in_dim)
    hidden = check_sizes("mlp: hidden", hidden)
    out_dim = check_number("mlp: out_dim", out_dim)
    sizes = [in_dim, *hidden]
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(sizes):
        layers += [nn.Linear(narrow, wide), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out_dim))
