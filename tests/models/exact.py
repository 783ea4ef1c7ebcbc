"""PCA and probabilistic PCA of MNIST's 60,000 training images (pixels / 255), computed once in float64 from an eigendecomposition."""

from functools import cache
from typing import NamedTuple

import pytest
import torch

from vilvm.datasets import mnist


class Exact(NamedTuple):
    """Squared error an image, mean log-likelihood an image in nats, noise variance of maximum likelihood."""

    sse_train: float
    sse_test: float
    noise: float
    ll_train: float
    ll_test: float


PCA_OF_MNIST = {
    2: Exact(43.86692, 43.64488, 0.05609580, 12.4277, 14.3601),
    10: Exact(26.98732, 26.71387, 0.03486734, 182.1547, 186.0241),
    50: Exact(9.24550, 9.00425, 0.01259605, 507.9054, 517.6033),
}


def mnist_or_skip():
    """All 60,000 training images and the 10,000 test images, as rows; the test is skipped where there is no MNIST."""
    found = _mnist()
    if found is None:
        pytest.skip("MNIST is not on this machine (VILVM_DATA)")
    return found


@cache
def _mnist():
    try:
        data = mnist(transform=None, download=False)
    except FileNotFoundError:
        return None
    return torch.cat([data.train.x, data.validation.x]), data.test.x
