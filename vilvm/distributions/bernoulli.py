"""A vector of independent Bernoulli variables, such as the pixels of a binary image.

With logits l and x ∈ {0, 1}, and log(1 + eˡ) = max(l, 0) − log σ(|l|),

    log p(x | l) = Σⱼ xⱼ lⱼ − max(lⱼ, 0) + log σ(|lⱼ|),

and every σ(|l|) is in [½, 1]. So the product of a hundred of them stays within the range of a
float32, and one logarithm of it suffices. ``Bernoulli(logits=l).to_event(1)`` computes one log1p
per pixel, which on a CPU is most of the cost of an importance-weighted bound (see
docs/performance_details.md).
"""

from functools import cache
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["IndependentBernoulli"]

_LARGEST_GROUP = 112  # 2⁻¹¹² is a normal float32
_BLOCK = 2**20  # numbers in a block; a few blocks fit in the cache


class IndependentBernoulli(TorchDistribution):
    """Independent Bernoulli variables over the last dimension.

    The same distribution as ``Bernoulli(logits=logits).to_event(1)``, several times faster.

    Arguments:
        logits: shape (*batch_shape, D).
        validate_args: whether to check parameters and values; by default as torch does.

    Examples:
        >>> import torch
        >>> from vilvm.distributions import IndependentBernoulli
        >>> IndependentBernoulli(torch.zeros(5, 3)).log_prob(torch.ones(3)).exp()
        tensor([0.1250, 0.1250, 0.1250, 0.1250, 0.1250])
    """

    arg_constraints: Any = {"logits": constraints.real_vector}  # noqa: RUF012
    support = constraints.independent(constraints.boolean, 1)  # type: ignore[assignment]

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self.logits = logits
        super().__init__(
            logits.shape[:-1], logits.shape[-1:], validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> "IndependentBernoulli":
        """The same distribution, its logits expanded to `batch_shape`."""
        new = IndependentBernoulli(
            self.logits.expand(*batch_shape, *self.event_shape), validate_args=False
        )
        # the logits have been checked, values have not
        new._validate_args = self._validate_args
        return new

    @property
    def base_dist(self) -> TorchDistribution:
        """The single variables, of batch shape (*batch_shape, D); named as in ``Independent``."""
        return dist.Bernoulli(logits=self.logits, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """σ(logits), shape (*batch_shape, D)."""
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        """σ(logits) (1 − σ(logits)), shape (*batch_shape, D)."""
        return self.mean * (1 - self.mean)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape (*sample_shape, *batch_shape, D), values 0 and 1."""
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(*sample_shape, *self.logits.shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Σⱼ log p(xⱼ), in nats; shape that of `value` and logits, broadcast, without the last."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(self.logits.shape, value.shape)
        return _LogProb.apply(self.logits.expand(shape), value)  # type: ignore[return-value]


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(logits, value)
        small = logits.dim() <= value.dim() or logits.numel() <= _BLOCK
        if small or torch.compiler.is_compiling():
            return _log_prob(logits, value)
        # many samples of one batch, in blocks that stay in the cache
        rows = max(1, _BLOCK // logits[0].numel())
        return torch.cat([_log_prob(block, value) for block in logits.split(rows)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grad = grads[0].unsqueeze(-1)
        logits, value = ctx.saved_tensors
        for_logits = for_value = None
        if ctx.needs_input_grad[0]:
            for_logits = (value - logits.sigmoid()).mul_(grad).sum_to_size(logits.shape)
        if ctx.needs_input_grad[1]:
            for_value = (logits * grad).sum_to_size(value.shape)
        return for_logits, for_value


def _log_prob(logits: Tensor, value: Tensor) -> Tensor:
    if logits.dtype in (torch.float16, torch.bfloat16):  # too small a range
        return _log_prob(logits.float(), value.float()).to(logits.dtype)
    # max(l, 0) − x l for each pixel, at least 0 for binary x: the difference of two large sums
    # would lose digits.
    linear = logits.clamp_min(0).addcmul_(logits, value, value=-1).sum(-1)
    p = logits.abs().sigmoid_()
    group = _group(p.shape[-1])
    products = p.unflatten(-1, (p.shape[-1] // group, group)).prod(-1)
    return products.log_().sum(-1).sub_(linear)


@cache
def _group(size: int) -> int:
    return max(g for g in range(1, _LARGEST_GROUP + 1) if size % g == 0)
