"""scikit-learn's handwritten digits: 1,797 pictures of 8 × 8, which need no download."""

import torch

from vilvm._runtime.argument_checks import check_seed
from vilvm.data.data import Data, Transform
from vilvm.data.datasets.dataset import Dataset, carve
from vilvm.data.transforms import DynamicBinarisation

__all__ = ["digits"]


def digits(
    *,
    validation: int = 150,
    transform: Transform | None = DynamicBinarisation(),  # noqa: B008
    seed: int = 0,
) -> Dataset:
    """The UCI test digits that scikit-learn contains, grey levels divided by 16.

    The last 297 are the test data.

    Arguments:
        validation: number of the other 1,500 that are validation data, drawn from `seed`.
        transform: applied to each batch.
        seed: of the validation split.

    Returns:
        The three splits, with rows of 64 numbers in [0, 1] and labels.

    Raises:
        ValueError: `validation` is out of range.

    Examples:
        >>> from vilvm.data.datasets import digits
        >>> digits(validation=100).train.x.shape
        torch.Size([1400, 64])
    """
    from sklearn.datasets import load_digits  # here, since its import takes seconds

    seed = check_seed("digits: seed", seed)

    pictures, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pictures, dtype=torch.float32) / 16, torch.tensor(labels)
    train = Data(x[:1500], "digits", "train", None, y[:1500], (8, 8))
    test = Data(x[1500:], "digits", "test", None, y[1500:], (8, 8))
    return Dataset(*carve(train, validation, seed), test).with_transform(transform)
