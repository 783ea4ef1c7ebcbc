"""Shared by the tests of several models: posteriordb, and exact PCA of MNIST.

PCA and probabilistic PCA of the 60,000 training images (pixels / 255) are computed once in float64
from an eigendecomposition.
"""

from functools import cache
from typing import NamedTuple

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from vilvm.data.datasets import mnist, posteriordb
from vilvm.lvm import module_parameters


class Exact(NamedTuple):
    """Squared error and mean log-likelihood (nats) per image, and the maximum likelihood noise
    variance.
    """

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


def posteriordb_or_skip(name, read=posteriordb):
    """What `read` makes of a posterior's files; skips the test if they are missing."""
    try:
        return read(name)
    except FileNotFoundError:
        pytest.skip("posteriordb is not on this machine (VILVM_DATA)")


def check_marginals(ours, reference):
    """Compares draws by scalar parameter with reference draws.

    No mean is off by a tenth of a reference standard deviation, and no standard deviation by a
    tenth.
    """
    for name, value in ours.items():
        error = (value.mean().item() - reference.mean(name)) / reference.sd(name)
        ratio = value.std().item() / reference.sd(name)
        print(f"{name}: mean off by {error:+.3f} sd, sd ratio {ratio:.3f}")
        assert abs(error) < 0.1, name
        assert abs(ratio - 1) < 0.1, name


def check_one_loss_and_gradient(enumerated, marginal, objective, x):
    """Checks that enumeration in the guide and summation in the likelihood give one loss and
    gradient.
    """
    marginal.load_state_dict(enumerated.state_dict())
    for one, elbo in ((enumerated, objective), (marginal, Trace_ELBO())):
        pyro.set_rng_seed(1)
        with module_parameters(one):
            one.loss = elbo.differentiable_loss(one.model, one.guide, x)
        one.loss.backward()
    torch.testing.assert_close(enumerated.loss, marginal.loss, rtol=1e-5, atol=1e-5)
    for a, b in zip(enumerated.parameters(), marginal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def mnist_or_skip():
    """The 60,000 training and 10,000 test images as rows; skips the test if MNIST is missing."""
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
