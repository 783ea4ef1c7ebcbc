"""Two clusters in the plane: p(x₁ | x₂) has two modes and is known in closed form.

    s = ±1 with probability ½ each,    x | s ~ N(s (2, ½), diag(¼², 1)),

so that with w(x₂) = P(s = 1 | x₂) = σ(x₂),

    p(x₁ | x₂) = w N(2, ¼²) + (1 − w) N(−2, ¼²),    E[x₁ | x₂] = 2 (2 w − 1).

At w = ½ the mean is 8 standard deviations away from either mode.
"""

import math

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_seed
from vilvm.data.data import Data
from vilvm.data.datasets.dataset import Dataset, simulated

__all__ = ["TwoModes", "two_modes"]

_MODE, _SHIFT, _WIDTH = 2.0, 0.5, 0.25


class TwoModes:
    """The exact conditional p(x₁ | x₂); every argument and result has shape (num_data,).

    Examples:
        >>> import torch
        >>> from vilvm.data.datasets import TwoModes
        >>> TwoModes.mean(torch.zeros(3))
        tensor([0., 0., 0.])
    """

    @staticmethod
    def upper(second: Tensor) -> Tensor:
        """P(x₁ belongs to the upper mode | x₂)."""
        return torch.sigmoid(2 * _SHIFT * second)

    @staticmethod
    def mean(second: Tensor) -> Tensor:
        """E[x₁ | x₂]."""
        return _MODE * (2 * TwoModes.upper(second) - 1)

    @staticmethod
    def log_prob(first: Tensor, second: Tensor) -> Tensor:
        """log p(x₁ | x₂), in nats."""
        w = TwoModes.upper(second)
        modes = torch.stack(
            [
                w.log() - ((first - _MODE) / _WIDTH) ** 2 / 2,
                (-w).log1p() - ((first + _MODE) / _WIDTH) ** 2 / 2,
            ]
        )
        return modes.logsumexp(0) - math.log(_WIDTH * math.sqrt(2 * math.pi))


def two_modes(num_train: int = 20_000, num_test: int = 2000, seed: int = 0) -> Dataset:
    """Draws from the two clusters, rows (x₁, x₂), as pictures of one by two pixels.

    ``TwoModes`` is the exact conditional of x₁ given x₂.

    Arguments:
        num_train: number of training data.
        num_test: number of validation data, and of test data.
        seed: of all draws.

    Returns:
        The three splits; a label is the cluster, −1 or 1.

    Examples:
        >>> from vilvm.data.datasets import two_modes
        >>> two_modes(100).train.x.shape
        torch.Size([100, 2])
    """
    seed = check_seed("two_modes: seed", seed)
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int, split: str) -> Data:
        s = 2 * torch.randint(2, (count, 1), generator=generator) - 1
        noise = torch.randn(count, 2, generator=generator) * torch.tensor([_WIDTH, 1.0])
        x = s * torch.tensor([_MODE, _SHIFT]) + noise
        return Data(x, "two modes", split, labels=s.squeeze(1), image_shape=(1, 2))

    return simulated("two_modes", draw, num_train, num_test)
