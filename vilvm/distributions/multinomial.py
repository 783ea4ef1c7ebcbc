"""Multinomial counts whose totals differ, such as the word counts of documents.

With n = Σ_v x_v words drawn with probabilities p = softmax(l),

    log p(x | n, l) = log n! − Σ_v log x_v! + Σ_v x_v log p_v.

``torch.distributions.Multinomial`` has one total for all rows.
"""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["Multinomial"]


class Multinomial(TorchDistribution):
    """Counts of `total_count` independent draws from one categorical variable.

    Arguments:
        total_count: n, shape (*batch_shape,), or broadcast with it.
        logits: l, shape (*batch_shape, V), or broadcast with it.
        validate_args: whether to check parameters and values; by default as torch does.

    Examples:
        >>> import torch
        >>> from vilvm.distributions import Multinomial
        >>> fn = Multinomial(torch.tensor([1.0, 2.0]), torch.zeros(2))
        >>> fn.log_prob(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).exp()
        tensor([0.5000, 0.5000])
    """

    arg_constraints: Any = {  # noqa: RUF012
        "total_count": constraints.nonnegative_integer,
        "logits": constraints.real_vector,
    }
    support: Any = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, total_count: Tensor, logits: Tensor, validate_args: bool | None = None
    ):
        shape = torch.broadcast_shapes(total_count.shape, logits.shape[:-1])
        self.total_count = total_count.expand(shape)
        self.logits = logits.expand(*shape, -1)
        super().__init__(shape, logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Multinomial":
        """The same distribution, its parameters expanded to `batch_shape`."""
        new = Multinomial(
            self.total_count.expand(batch_shape),
            self.logits.expand(*batch_shape, -1),
            validate_args=False,
        )
        # the parameters have been checked, values have not
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """n p, shape (*batch_shape, V)."""
        return self.total_count.unsqueeze(-1) * self.logits.softmax(-1)

    @property
    def variance(self) -> Tensor:
        """n p (1 − p), shape (*batch_shape, V)."""
        return self.mean * (1 - self.logits.softmax(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x | n, l) in nats, for counts that sum to n; shape (*batch_shape,)."""
        if self._validate_args:
            self._validate_sample(value)
        orders = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return orders + (value * self.logits.log_softmax(-1)).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Counts of shape (*sample_shape, *batch_shape, V)."""
        longest = max(1, int(self.total_count.max()))
        one = torch.distributions.Categorical(logits=self.logits, validate_args=False)
        words = one.sample(torch.Size((longest, *sample_shape))).movedim(0, -1)
        counted = (
            torch.arange(longest, device=words.device) < self.total_count[..., None]
        )
        counts = self.logits.new_zeros((*words.shape[:-1], self.logits.shape[-1]))
        return counts.scatter_add_(-1, words, counted.to(counts).expand(words.shape))
