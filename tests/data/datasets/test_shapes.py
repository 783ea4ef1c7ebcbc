"""Pictures of shapes: every combination of factors once, drawn where the factors say."""

import pytest
import torch

from vilvm.data.datasets import shape_factors, shapes


@pytest.fixture(scope="module")
def everything():
    splits = shapes()
    x = torch.cat([split.x for split in splits])
    labels = torch.cat([split.labels for split in splits])
    return x.reshape(-1, 16, 16), labels


def test_every_combination_appears_once(everything):
    x, labels = everything
    assert labels.sort().values.equal(torch.arange(972))
    counts = {n: f.bincount().tolist() for n, f in shape_factors(labels).items()}
    assert counts["shape"] == [324] * 3
    assert counts["size"] == [243] * 4
    assert counts["across"] == counts["down"] == [108] * 9
    assert len(x.flatten(1).unique(dim=0)) == 972


def test_factors_are_those_of_the_picture(everything):
    x, labels = everything
    factors, pixel = shape_factors(labels), torch.arange(16) + 0.5
    mass = x.sum((1, 2))
    across = (x.sum(1) * pixel).sum(1) / mass
    torch.testing.assert_close(
        across, 4.5 + 0.875 * factors["across"], atol=0.1, rtol=0
    )
    disc = factors["shape"] == 1
    area = torch.pi * (2.0 + 0.75 * factors["size"][disc]) ** 2
    torch.testing.assert_close(mass[disc], area, atol=0.0, rtol=0.06)


def test_held_out_data_must_leave_some():
    with pytest.raises(ValueError, match="held_out must be below 486; got 500"):
        shapes(held_out=500)
