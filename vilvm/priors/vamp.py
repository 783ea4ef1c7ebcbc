"""The VampPrior: a mixture of the guide's own posteriors at learned pseudo-inputs.

The prior that maximises the ELBO for a fixed guide is the aggregated posterior, the mean of
q(z | xₙ) over all N data. The VampPrior has K ≪ N components instead,

    p(z) = 1/K Σₖ q(z | uₖ),

whose pseudo-inputs uₖ have the shape of a datum and are trained with the model, through the
encoder of the guide. With K = N and uₙ = xₙ it is the aggregated posterior, which overfits.

Reference: VAE with a VampPrior, Jakub M. Tomczak and Max Welling, 2018.
"""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vilvm._runtime.argument_checks import check_tensor
from vilvm.distributions import NormalMixture
from vilvm.lvm import ContractError, rebuildable

__all__ = ["VampPrior"]


@rebuildable
class VampPrior(nn.Module):
    """p(z) = 1/K Σₖ q(z | uₖ), trained with the model.

    In a model: ``z = pyro.sample("z", self.prior(self.encode))``, where ``encode(x)`` is the
    distribution that the guide draws z from.

    A density costs one pass of the K pseudo-inputs through the encoder, and one matrix product if
    q is a diagonal Gaussian (``distributions.NormalMixture``). For another q every value is scored
    under K components; an inverse autoregressive flow does so in d passes through its networks.

    Arguments:
        pseudo_inputs: where training starts, shape (K, *datum); K training data are a good start.
        bounds: the range of the pseudo-inputs, such as (0, 1) for images; without limits by
            default.

    Raises:
        ValueError: `pseudo_inputs` is no tensor.

    Reference: VAE with a VampPrior, Jakub M. Tomczak and Max Welling, 2018.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.priors import VampPrior
        >>> x = torch.rand(50, 6).round()
        >>> lvm = VAE(data_dim=6, latent_dim=2, prior=VampPrior(x[:10], bounds=(0, 1)))
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    def __init__(
        self, pseudo_inputs: Tensor, bounds: tuple[float, float] | None = None
    ):
        super().__init__()
        start = check_tensor("VampPrior: pseudo_inputs", pseudo_inputs)
        self.pseudo_inputs = nn.Parameter(start.detach().clone())
        self.bounds = bounds

    def forward(self, encode: Callable[[Tensor], Any]) -> dist.TorchDistribution:
        """p(z), of batch shape () and the event shape of q.

        Arguments:
            encode: maps u of shape (K, *datum) to q(z | u), of batch shape (K,).

        Returns:
            A mixture of K equal weights.

        Raises:
            ContractError: q has another batch shape.
        """
        q = encode(self.inputs)
        size = len(self.pseudo_inputs)
        if q.batch_shape != (size,):
            raise ContractError(
                f"VampPrior: at {size} pseudo-inputs the encoder returns a distribution of batch "
                f"shape {tuple(q.batch_shape)}; it must be ({size},)."
            )
        logits = self.pseudo_inputs.new_zeros(size)
        if _is_diagonal_normal(q):
            return NormalMixture(logits, q.base_dist.loc, q.base_dist.scale)
        return _Mixture(dist.Categorical(logits=logits), q)

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs u within their bounds, shape (K, *datum)."""
        free = self.pseudo_inputs
        if self.bounds is None:
            return free
        # The gradient passes as if there were no bounds. That of a clamp is zero beyond them, so
        # that a number which left them once could never come back.
        return free + (free.clamp(*self.bounds) - free).detach()


class _Mixture(dist.MixtureSameFamily):
    """A mixture whose components may be flows, which need a value of their own full shape."""

    def log_prob(self, value: Tensor) -> Tensor:
        event = self.event_dim
        each = value.unsqueeze(-1 - event)
        size = self.mixture_distribution.logits.shape[-1]
        each = each.expand(*value.shape[:-event], size, *value.shape[-event:])
        log_weights = self.mixture_distribution.logits.log_softmax(-1)
        return (self.component_distribution.log_prob(each) + log_weights).logsumexp(-1)


def _is_diagonal_normal(q: Any) -> bool:
    if not isinstance(q, Independent) or q.reinterpreted_batch_ndims != 1:
        return False
    return isinstance(q.base_dist, Normal)
