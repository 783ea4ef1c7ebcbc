"""The amortised diagonal Gaussian, q(z | x) = N(m(x), diag s²(x)), the guide of a VAE.

Reference: Auto-Encoding Variational Bayes, Diederik P. Kingma and Max Welling, 2014.
"""

import pyro.distributions as dist
from torch import Tensor

__all__ = ["normal"]

# keeps scales within e^±7, so that they do not overflow early in training
_LOG_VARIANCES = (-14.0, 14.0)


def normal(out: Tensor) -> dist.Independent:
    """The amortised Gaussian N(m, diag s²).

    Arguments:
        out: an encoder's output, shape (..., 2 d): m and log s², concatenated.

    Returns:
        A distribution of batch shape (...) and event shape (d,).

    Reference: Auto-Encoding Variational Bayes, Diederik P. Kingma and Max Welling, 2014.

    Examples:
        >>> import torch
        >>> from vilvm.guides import normal
        >>> normal(torch.zeros(5, 4)).event_shape
        torch.Size([2])
    """
    mean, log_variance = out.chunk(2, dim=-1)
    return dist.Normal(
        mean, (0.5 * log_variance.clamp(*_LOG_VARIANCES)).exp()
    ).to_event(1)
