"""The data of a diagnosis: all, or random ones of them, prepared for a pair."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from vilvm.data.data import Data
from vilvm.lvm import ContractError, LatentVariableModel
from vilvm.weights import find_layout
from vilvm.weights.prepared import Prepared, prepared_of

__all__ = ["Chosen", "choose"]

_RUNS = 500  # least number of runs of the pair
_FEW = 50  # data used if these runs would exceed the budget


@dataclass(frozen=True)
class Chosen:
    """The data of a diagnosis.

    Arguments:
        prepared: the pair and the chosen data.
        index: their index in the full data set, shape (num_data,).
        is_all: whether these are all data, so that results need no renaming.
        cut: what was left out for lack of time.
    """

    prepared: Prepared
    index: Tensor
    is_all: bool
    cut: dict[str, str]

    @property
    def index_to_name(self) -> Tensor | None:
        """The index that names data in the results; None if the results need no renaming."""
        if self.is_all:
            return None
        return self.index


def choose(
    lvm: LatentVariableModel | Prepared,
    given: Data,
    num_data: int,
    seed: int,
    end: float,
) -> Chosen:
    """Prepares all data or a random subset, which is smaller if a run of the pair is slow.

    Arguments:
        lvm: the model and guide, or a ``Prepared`` of all data.
        given: all data.
        num_data: data to use if there are more.
        seed: seed of the choice and of the preparation.
        end: time on the monotonic clock at which the budget is spent.
    """
    began = time.monotonic()
    prepared, picked = _first_prepared(lvm, given, num_data, seed)
    cut = {}
    if (time.monotonic() - began) * _RUNS > end - began and num_data > _FEW:
        num_data = _FEW
        if len(given) > num_data:
            cut = {"Data": f"{num_data} of {len(given)}"}
    data, index = prepared.data, _index(prepared, num_data)
    if len(index) < len(data):
        prepared = prepared_of("diagnose", prepared.lvm, data.subset(index), seed=seed)
    elif data.streamed:
        prepared = prepared_of("diagnose", prepared.lvm, data.loaded(), seed=seed)
    if picked is not None:
        return Chosen(prepared, picked[index], False, cut)
    return Chosen(prepared, index, len(index) == len(data), cut)


def _first_prepared(
    lvm: LatentVariableModel | Prepared, given: Data, num_data: int, seed: int
) -> tuple[Prepared, Tensor | None]:
    """All data, prepared; or a random subset of data on disk, with its index."""
    if isinstance(lvm, Prepared):
        return lvm, None
    picked = _picked_from_disk(given, num_data, seed)
    if picked is None:
        return prepared_of("diagnose", lvm, given, seed=seed), None
    prepared = prepared_of("diagnose", lvm, given.subset(picked), seed=seed)
    if not prepared.local:
        # This raises, because a subset does not suffice and all data cannot be kept.
        given.fixed(seed)
    return prepared, picked


def _picked_from_disk(data: Data, count: int, seed: int) -> Tensor | None:
    """The index of the data to read, if they are on disk and have a transform; else None.

    The draws of a transform are kept in memory, which may be too small for all data.
    """
    if data.streamed and data.transform is not None:
        return _random_index(len(data), count, seed)
    return None


def _random_index(total: int, count: int, seed: int) -> Tensor:
    """The index of `count` random data, in order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count].sort().values


def _index(prepared: Prepared, count: int) -> Tensor:
    """The index of a random subset; of all data if they share a latent or the pair needs all."""
    data = prepared.data
    everything = torch.arange(len(data))
    if not prepared.local or not data.divisible or len(data) <= count:
        return everything
    picked = _random_index(len(data), count, prepared.seed)
    try:
        with prepared.running():
            batch = data.subset(picked).x
            find_layout(prepared.lvm, batch, plate=prepared.layout.data_plate)
    except ContractError:  # a guide with parameters for each datum
        return everything
    return picked
