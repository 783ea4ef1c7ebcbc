"""Corruptions have the properties that they document."""

import pytest
import torch

import vilvm
from vilvm.data import (
    BlockMasking,
    Blur,
    Chain,
    Corrupted,
    DynamicBinarisation,
    GaussianNoise,
    HalfErasure,
    PixelErasure,
    StaticBinarisation,
)


def test_gaussian_noise_has_its_scale():
    torch.manual_seed(0)
    noise = GaussianNoise(0.5)(torch.full((400, 100), 0.3)) - 0.3
    assert abs(noise.mean().item()) < 5 * 0.5 / 200
    assert abs(noise.std().item() - 0.5) < 5 * 0.5 / (2 * 40_000) ** 0.5


def test_erasure_erases_its_share():
    torch.manual_seed(0)
    erased = PixelErasure(0.3)(torch.ones(400, 100))
    assert set(erased.unique().tolist()) == {0.0, 1.0}
    assert abs(erased.mean().item() - 0.7) < 5 * (0.21 / 40_000) ** 0.5


@pytest.mark.parametrize("shape", [(7, 9), (3, 7, 9)])
def test_a_block_is_one_square_in_the_picture(shape):
    torch.manual_seed(0)
    x = torch.ones(500, torch.Size(shape).numel())
    erased = (BlockMasking(4, shape)(x) == 0).reshape(500, -1, 7, 9)
    assert (erased == erased[:, :1]).all()  # the same in every channel
    rows, columns = erased[:, 0].any(2), erased[:, 0].any(1)
    assert (rows.sum(1) == 4).all()
    assert (columns.sum(1) == 4).all()
    assert (erased[:, 0] == rows[:, :, None] & columns[:, None, :]).all()
    starts = columns.int().argmax(1)
    assert set(starts.tolist()) == set(range(6))
    assert (columns.int().diff(dim=1).abs().sum(1) <= 2).all()  # in one piece


def test_blur_is_gaussian_and_keeps_the_sum():
    point = torch.zeros(1, 28, 28)
    point[0, 14, 14] = 1
    blurred = Blur(2.0)(point.flatten(1)).reshape(28, 28)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert (blurred[14, 16] / blurred[14, 14]).item() == pytest.approx(
        torch.tensor(-0.5).exp().item(), rel=1e-4
    )
    # smaller than the kernel
    torch.testing.assert_close(Blur(1.0, (1, 2, 3))(torch.ones(2, 6)), torch.ones(2, 6))


def test_pairs_are_corrupted_and_clean():
    x = torch.rand(50, 20)
    noisy = vilvm.Data(x, transform=Corrupted(GaussianNoise(0.1)))
    corrupted, clean = noisy.model_input()
    assert torch.equal(clean, x)
    assert not torch.equal(corrupted, noisy.model_input()[0])
    assert len(noisy) == 50
    fixed = noisy.fixed(3)
    assert torch.equal(fixed.x[0], noisy.fixed(3).x[0])
    binary = Chain((DynamicBinarisation(), Corrupted(PixelErasure(0.5))))
    corrupted, clean = binary(x)
    assert set(clean.unique().tolist()) == {0.0, 1.0}
    assert (corrupted <= clean).all()
    assert binary.name == "dynamic binarisation, pixel erasure"
    assert (
        "Corrupted(corruption=PixelErasure(share=0.5))"
        in vilvm.Data(x, transform=binary).protocol()["transform"]
    )


def test_a_blur_is_applied_once():
    data = vilvm.Data(torch.rand(3, 784), transform=Corrupted(Blur()))
    assert data.transformed
    assert data.model_input()[0] is data.model_input()[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(0.0), "scale must be a positive number; got 0.0"),
        (lambda: PixelErasure(1.5), "share must be above 0 and at most 1; got 1.5"),
        (
            lambda: BlockMasking(29),
            "size must be between 1 and 28 for such pictures; got 29",
        ),
        (lambda: BlockMasking(2, (784,)), r"image_shape must be \(height, width\)"),
        (lambda: Blur(-1.0), "scale must be a positive number"),
        (
            lambda: BlockMasking(2, (2, 2))(torch.zeros(3, 5)),
            r"data of shape \(3, 5\) are not rows of 4 pixels",
        ),
        (
            lambda: GaussianNoise()(torch.ones(2, 3).long()),
            "Gaussian noise: needs real numbers, and these data are torch.int64",
        ),
        (
            lambda: PixelErasure()(torch.ones(2, 3).long()),
            "pixel erasure: needs real numbers",
        ),
        (lambda: Corrupted(0.5), "corruption is a float, not a transform"),
        (
            lambda: Chain((StaticBinarisation(), PixelErasure())),
            "binarise the tensors first",
        ),
        (lambda: Chain(()), r"takes a tuple of transforms, such as .* got \(\)"),
        (lambda: Chain((PixelErasure, 1)), "takes a tuple of transforms"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("half", "left"),
    [("left", [2, 5]), ("right", [0, 3]), ("top", [3, 4, 5]), ("bottom", [0, 1, 2])],
)
def test_a_half_is_erased(half, left):
    shape = (2, 3)
    erased = HalfErasure(half, shape)
    kept = erased.observed.nonzero().flatten().tolist()
    assert set(left) <= set(kept)
    # of three columns the middle one stays
    assert len(kept) == {"left": 4, "right": 4, "top": 3, "bottom": 3}[half]
    assert torch.equal(erased(torch.ones(5, 6)), erased.observed.float().expand(5, 6))
    both = HalfErasure(half, (3, *shape)).observed.reshape(3, 6)
    assert (both == erased.observed).all()


def test_unknown_half():
    with pytest.raises(ValueError, match="unknown half 'middle'; choose from"):
        HalfErasure("middle")
