"""The small object that every data set returns: its three splits."""

from dataclasses import replace
from typing import NamedTuple

import torch

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm.data.data import Data, Transform

__all__ = ["Dataset", "carve"]


class Dataset(NamedTuple):
    """Training, validation and test data; each says its own name, split and transform (see
    ``vilvm.data.Data``).
    """

    train: Data
    validation: Data
    test: Data

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.train.name

    def with_transform(self, transform: Transform | None) -> "Dataset":
        """The same data under another transform; one that is not fresh at each batch is drawn now,
        from its own seed.

        Raises:
            ValueError: the data are those that another transform has made.
        """
        if any(split.transformed for split in self):
            raise ValueError(
                f"{self.name}: the data were made by {self.train.transform!r} already; load them "
                "with transform=None."
            )
        return Dataset(*(replace(split, transform=transform) for split in self))


def carve(train: Data, validation: int, seed: int) -> tuple[Data, Data]:
    """Training data cut in two, training and validation, at random from `seed`.

    Raises:
        ValueError: `validation` leaves no training data, or is negative.
    """
    seed = check_seed("carve: seed", seed)
    if not isinstance(train, Data):
        raise ValueError(f"carve: train must be a vilvm.Data; got a {type(train).__name__}.")
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
