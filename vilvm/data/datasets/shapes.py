"""Pictures of one shape whose factors are known: shape, size and position, all combinations once.

    3 shapes (square, disc, triangle) × 4 sizes × 9 positions across × 9 down = 972 pictures,

of 16 × 16 grey levels, computed in milliseconds. Each factor is uniform and independent of the
others, as disentanglement is usually measured (``vilvm.evaluation.mig``). A pixel is the share of
it that the shape covers, from the signed distance δ of its centre to the edge:

    x = min(1, max(0, ½ − δ)).

Reference: dSprites, Matthey, Higgins, Hassabis and Lerchner, 2017 (the same idea, 737,280 pictures
of 64 × 64).
"""

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm.data.data import Data, Transform
from vilvm.data.datasets.dataset import Dataset, carve

__all__ = ["shape_factors", "shapes"]

_SIDE = 16
_FACTORS = {"shape": 3, "size": 4, "across": 9, "down": 9}
_COUNT = 3 * 4 * 9 * 9


def shapes(
    *, held_out: int = 100, transform: Transform | None = None, seed: int = 0
) -> Dataset:
    """All 972 pictures, split at random.

    Arguments:
        held_out: number of validation data, and of test data.
        transform: applied to each batch, such as ``DynamicBinarisation()``.
        seed: of the splits.

    Returns:
        The three splits, with rows of 256 grey levels in [0, 1]; a label is the number of the
        picture, from which ``shape_factors`` computes its factors.

    Raises:
        ValueError: `held_out` leaves no training data.

    Examples:
        >>> from vilvm.data.datasets import shape_factors, shapes
        >>> data = shapes(held_out=72)
        >>> data.train.x.shape, sorted(shape_factors(data.train.labels))
        (torch.Size([828, 256]), ['across', 'down', 'shape', 'size'])
    """
    seed = check_seed("shapes: seed", seed)
    held_out = check_number("shapes: held_out", held_out)
    if 2 * held_out >= _COUNT:
        raise ValueError(
            f"shapes: held_out must be below {_COUNT // 2}; got {held_out}."
        )
    numbers = torch.arange(_COUNT)
    pictures = _drawn(shape_factors(numbers))
    everything = Data(pictures, "shapes", "train", None, numbers, (_SIDE, _SIDE))
    rest, test = carve(everything, held_out, seed)
    train, validation = carve(rest, held_out, seed)
    test = Data(test.x, "shapes", "test", None, test.labels, test.image_shape)
    return Dataset(train, validation, test).with_transform(transform)


def shape_factors(labels: Tensor) -> dict[str, Tensor]:
    """The factors of pictures of ``shapes``, whole numbers from 0.

    Arguments:
        labels: numbers of pictures, shape (num_data,).

    Returns:
        "shape" (0 square, 1 disc, 2 triangle), "size", "across" and "down", each of shape
        (num_data,).

    Examples:
        >>> import torch
        >>> from vilvm.data.datasets import shape_factors
        >>> {name: int(value) for name, value in shape_factors(torch.tensor([971])).items()}
        {'shape': 2, 'size': 3, 'across': 8, 'down': 8}
    """
    values = torch.unravel_index(labels, tuple(_FACTORS.values()))
    return dict(zip(_FACTORS, values, strict=True))


def _drawn(factors: dict[str, Tensor]) -> Tensor:
    """Grey levels, shape (num_data, 256)."""
    shape, size, across, down = (factors[name][:, None, None] for name in _FACTORS)
    pixel = torch.arange(_SIDE) + 0.5
    radius = 2.0 + 0.75 * size
    x = pixel - (4.5 + 0.875 * across)
    y = pixel[:, None] - (4.5 + 0.875 * down)
    square = torch.maximum(x.abs(), y.abs()) - 0.9 * radius
    disc = (x.square() + y.square()).sqrt() - radius
    # three half-planes at a distance of 0.6 radius from the centre
    slanted = 3**0.5 / 2 * x.abs() - y / 2
    triangle = torch.maximum(slanted, y) - 0.6 * radius
    distance = torch.stack(torch.broadcast_tensors(square, disc, triangle))
    chosen = distance.gather(0, shape.expand(distance.shape[1:])[None])[0]
    return (0.5 - chosen).clamp(0, 1).flatten(1)
