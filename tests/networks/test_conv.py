"""Convolutional networks on rows: leading dimensions are free, and independent."""

import pytest
import torch

from vilvm.networks import ConvDecoder, ConvEncoder


@pytest.mark.parametrize(
    ("network", "size"),
    [(ConvEncoder(8, 3, (2, 4), 3), 192), (ConvDecoder(3, 8, (2, 4), 3), 3)],
)
def test_leading_dimensions_are_free(network, size):
    x = torch.randn(5, 2, size)
    together = network(x)
    assert together.shape == (5, 2, 195 - size)
    torch.testing.assert_close(together[3, 1], network(x[3, 1][None])[0])
    torch.testing.assert_close(together, torch.stack([network(row) for row in x]))
