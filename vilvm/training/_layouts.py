"""The layouts of the batches that a run meets, and the error for a batch that is too small."""

from typing import Any

import torch

from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.data.tensors import structure_of
from vilvm.lvm import ContractError
from vilvm.training._batches import Batches, Turns
from vilvm.weights import Layout, find_layout

__all__ = ["Layouts", "explain_small_batch"]

_LACKS_DATA = "more than 1 value per channel"  # part of torch's message


class Layouts:
    """Layouts by kind of batch and number of rows, found when a batch is first met.

    Arguments:
        lvm: the model and guide.
        seed: of the noise with which a layout is found.
        device: of the data.
    """

    def __init__(self, lvm: Any, seed: int, device: torch.device):
        self.lvm = lvm
        self.seed = seed
        self.device = device
        self._found: dict[Any, Layout] = {}

    def known(self) -> list[Layout]:
        """All layouts found so far; the first is that of the first source."""
        return list(self._found.values())

    def of(self, batch: Any) -> Layout:
        """The layout of batches like this one, which has been found before."""
        return self._found[_key(batch)]

    def of_kind(self, kind: Any) -> list[Layout]:
        """The layouts of batches of this kind, in the order in which they were found."""
        return [layout for (other, _), layout in self._found.items() if other == kind]

    def find(self, batch: Any) -> Layout:
        """The layout of batches like this one; runs the pair if it is not known.

        Raises:
            ContractError: the pair cannot run on this batch.
        """
        key = _key(batch)
        if key not in self._found:
            plate = None
            others = self.of_kind(key[0])
            if others:
                plate = others[0].data_plate
            with seeded(self.seed, self.device):
                self._found[key] = find_layout(
                    self.lvm, batch, validate=not others, plate=plate
                )
        return self._found[key]


def _key(batch: Any) -> tuple[Any, int]:
    return structure_of(batch), len(Data(batch))


def explain_small_batch(
    error: ValueError,
    step: int,
    batches: Batches | Turns,
) -> ValueError:
    """Explains that batch normalisation met a single datum; returns any other error unchanged."""
    if _LACKS_DATA not in str(error):
        return error
    ranks = batches.sources[0].ranks
    where = "the batch"
    if ranks.size > 1:
        where = f"the share of rank {ranks.rank}"
    return ContractError(
        f"Step {step + 1}: {where} holds one datum, for which batch normalisation has no "
        "statistics: choose a batch_size that leaves no single datum over "
        f"({len(batches.data)} data in batches of {batches.size}, {ranks.size} ranks)."
    )
