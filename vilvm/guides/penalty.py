"""A term of the training loss that belongs to no density.

Some methods train with ELBO − r, r being a penalty such as the commitment loss of a VQ-VAE. A
``pyro.factor`` of r in the guide does so in every objective, but r is then part of log q(z | x),
and no number is a bound any more. The factor

    r − stop_gradient(r)

is zero and has the gradient of r. So training minimises −ELBO + r, while the loss that is
reported, ``evaluate`` and everything else computed from log-weights are those of the pair without
the penalty.
"""

import pyro
from torch import Tensor

__all__ = ["penalty"]


def penalty(name: str, value: Tensor) -> None:
    """Adds a penalty to the loss that the guide is trained with, and nothing to its density.

    To be called in a guide, within the plate over the data.

    Arguments:
        name: of the site.
        value: the penalty in nats per datum, shape (num_data,), differentiable.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.guides import penalty
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> guide = lambda: penalty("shrink", w**2)
        >>> loss = pyro.infer.Trace_ELBO().differentiable_loss(lambda: None, guide)
        >>> loss.item(), torch.autograd.grad(loss, w)[0].item()
        (0.0, 6.0)
    """
    pyro.factor(name, value - value.detach(), has_rsample=True)
