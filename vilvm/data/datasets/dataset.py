"""A data set of three splits."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm.data.data import Data, Transform

__all__ = ["Dataset", "carve", "simulated"]


class Dataset(NamedTuple):
    """The three splits of a data set, each a ``vilvm.Data`` with its name and transform.

    Arguments:
        train: the training data.
        validation: the validation data.
        test: the test data.

    Examples:
        >>> from vilvm.data.datasets import digits
        >>> dataset = digits()
        >>> dataset.name, len(dataset.train), len(dataset.validation), len(dataset.test)
        ('digits', 1350, 150, 297)
    """

    train: Data
    validation: Data
    test: Data

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.train.name

    def with_transform(self, transform: Transform | None) -> "Dataset":
        """The same data under another transform; one that is not fresh is applied at once.

        Raises:
            ValueError: the data are the output of another transform.
        """
        if any(split.transformed for split in self):
            raise ValueError(
                f"{self.name}: the data are already the output of {self.train.transform!r}; load "
                "them with transform=None."
            )
        return Dataset(*(replace(split, transform=transform) for split in self))


def carve(train: Data, validation: int, seed: int) -> tuple[Data, Data]:
    """Splits validation data off the training data at random.

    Arguments:
        train: the training data.
        validation: number of validation data, at least 1.
        seed: of the split.

    Returns:
        The remaining training data and the validation data.

    Raises:
        ValueError: `validation` is below 1, or leaves no training data.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.data.datasets import carve
        >>> train, validation = carve(vilvm.Data(torch.rand(10, 3)), validation=2, seed=0)
        >>> len(train), len(validation), validation.split
        (8, 2, 'validation')
    """
    seed = check_seed("carve: seed", seed)
    if not isinstance(train, Data):
        raise ValueError(
            f"carve: train must be a vilvm.Data; got a {type(train).__name__}."
        )
    validation = check_number(f"{train.name}: validation", validation)
    if validation >= len(train):
        raise ValueError(
            f"{train.name}: validation must be between 1 and {len(train) - 1} data; got "
            f"{validation}."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held_out = train.subset(order[:validation].sort().values)
    kept = train.subset(order[validation:].sort().values)
    return kept, replace(held_out, split="validation")


def simulated(
    caller: str, draw: Callable[[int, str], Data], num_train: int, num_test: int
) -> Dataset:
    """The three splits of a simulation, drawn one after the other.

    Arguments:
        caller: for errors.
        draw: draws a number of data for the split of that name.
        num_train: number of training data.
        num_test: number of validation data, and of test data.

    Returns:
        Dataset.

    Raises:
        ValueError: a number is below 1.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.data.datasets.dataset import simulated
        >>> draw = lambda count, split: vilvm.Data(torch.rand(count, 3), "noise", split)
        >>> len(simulated("noise", draw, num_train=8, num_test=2).test)
        2
    """
    num_train = check_number(f"{caller}: num_train", num_train)
    num_test = check_number(f"{caller}: num_test", num_test)
    return Dataset(
        draw(num_train, "train"), draw(num_test, "validation"), draw(num_test, "test")
    )
