"""Gated layers, h ⊙ σ(g) with affine h and g of the input.

References: VAE with a VampPrior, Jakub M. Tomczak and Max Welling, 2018; Language Modeling with
Gated Convolutional Networks, Dauphin, Fan, Auli and Grangier, 2017.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vilvm._runtime.argument_checks import check_number, check_sizes
from vilvm._runtime.rebuildable import rebuildable

__all__ = ["GatedLinear", "gated_mlp"]


class GatedLinear(nn.Module):
    """The gated layer (W x + b) ⊙ σ(V x + c).

    W and V start at N(0, 2 / in_dim), as in the paper's code.

    Arguments:
        in_dim: size of the last dimension of the input; leading dimensions are free.
        out_dim: size of the last dimension of the output.

    Reference: VAE with a VampPrior, Jakub M. Tomczak and Max Welling, 2018.

    Examples:
        >>> import torch
        >>> from vilvm.networks import GatedLinear
        >>> GatedLinear(784, 300)(torch.zeros(5, 784)).shape
        torch.Size([5, 300])
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.both = nn.Linear(in_dim, 2 * out_dim)  # h and g in one product
        nn.init.normal_(self.both.weight, std=(2 / in_dim) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) → (..., out_dim)."""
        return nn.functional.glu(self.both(x))


@rebuildable
def gated_mlp(in_dim: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    """A perceptron of gated layers, in_dim → hidden[0] → …, and an affine map to out_dim.

    Arguments:
        in_dim: size of the last dimension of the input; leading dimensions are free.
        hidden: sizes of the gated layers; none makes an affine map.
        out_dim: size of the last dimension of the output.

    Returns:
        The network.

    Raises:
        ValueError: a size is not a positive integer.

    Reference: VAE with a VampPrior, Jakub M. Tomczak and Max Welling, 2018.

    Examples:
        >>> import torch
        >>> from vilvm.networks import gated_mlp
        >>> gated_mlp(784, (300, 300), 40)(torch.zeros(5, 3, 784)).shape
        torch.Size([5, 3, 40])
    """
    in_dim = check_number("gated_mlp: in_dim", in_dim)
    hidden = check_sizes("gated_mlp: hidden", hidden)
    out_dim = check_number("gated_mlp: out_dim", out_dim)
    sizes = [in_dim, *hidden]
    gated = [GatedLinear(narrow, wide) for narrow, wide in pairwise(sizes)]
    return nn.Sequential(*gated, nn.Linear(sizes[-1], out_dim))
