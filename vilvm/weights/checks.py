"""Checks of the batch and of the number of data; each error message is one sentence."""

from collections.abc import Iterator, Mapping
from typing import Any

from vilvm.data._checks import why_unusable
from vilvm.data._column_names import check_columns, training_columns
from vilvm.data._foreign import converted, is_foreign
from vilvm.data.data import Data
from vilvm.data.streamed import StreamedTensor
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.lvm import ContractError, device_of, dtype_of

__all__ = ["as_batch", "check_batch", "check_full_size"]


def as_batch(lvm: object, batch: Any) -> Any:
    """A batch that a model can be called with.

    Data of other libraries become tensors on the model's device.

    Arguments:
        lvm: the model, whose type floats of other libraries get.
        batch: a tensor, an array, a frame (see ``vilvm.data.as_data``), or nested tuples and dicts
            of them.

    Returns:
        The tensors.

    Raises:
        ContractError: it is or holds something else, or it is empty.
        ValueError: an array or a frame holds no real numbers, or too few; or its columns are not
            those of the training data.

    Examples:
        >>> import numpy, torch
        >>> from vilvm.weights.checks import as_batch
        >>> as_batch(torch.nn.Linear(2, 3), numpy.zeros((1, 2)))
        tensor([[0., 0.]])
    """
    if is_foreign(batch):
        where = device_of(lvm)
        read = converted(batch, "the batch", dtype_of(lvm))
        check_columns(read, training_columns(lvm), "the batch")
        batch = map_tensors(lambda t: t.to(where), read.x)
    check_batch(batch)
    return batch


def check_batch(batch: Any) -> None:
    """Checks that a model can be called with a batch.

    Arguments:
        batch: a tensor, or nested tuples and dicts of tensors.

    Raises:
        ContractError: it is or holds something else, or it is empty.

    Examples:
        >>> import torch
        >>> from vilvm.weights.checks import check_batch
        >>> check_batch({"x": torch.zeros(4, 6)})
    """
    if isinstance(batch, Data):
        raise ContractError(
            "Got a vilvm.Data in place of a batch; pass data.fixed().x, the tensors themselves."
        )
    if isinstance(batch, str | bytes | set | Iterator):
        raise ContractError(
            f"Got a {type(batch).__name__} in place of a batch; pass a tensor, or a tuple or dict "
            "of tensors."
        )
    for fault in map(why_unusable, _parts_of(batch)):
        if fault is not None:
            raise ContractError(f"The batch {fault}")
    tensors = tensors_of(batch)
    if any(isinstance(tensor, StreamedTensor) for tensor in tensors):
        raise ContractError(
            "Got data that are read in batches (on disk or sparse) in place of a batch; read some "
            "of them, vilvm.Data(x).subset(slice(0, 1000)).x, or all, vilvm.Data(x).loaded().x."
        )
    if any(tensor.dim() and not len(tensor) for tensor in tensors):
        raise ContractError("The batch is empty; pass at least one datum.")


def _parts_of(batch: Any) -> Iterator[Any]:
    """Everything in the nested dicts, lists and tuples of a batch."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if not isinstance(batch, list | tuple):
        yield batch
        return
    for part in batch:
        yield from _parts_of(part)


def check_full_size(who: str, layout: Any, num_data: int, *also: int) -> None:
    """Checks that the data plate declares as many data as there are.

    Otherwise the likelihood is multiplied by the wrong factor. A plate of the batch's own size
    does not scale it.

    Arguments:
        who: names the caller in the error.
        layout: the layout of a batch.
        num_data: number of data in the full data set.
        also: other correct full sizes.

    Raises:
        ContractError: the plate declares another number.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import find_layout
        >>> from vilvm.weights.checks import check_full_size
        >>> layout = find_layout(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6))
        >>> check_full_size("fit", layout, num_data=4)
    """
    if layout.full_size not in (layout.num_data, num_data, *also):
        raise ContractError(
            f"{who}: plate {layout.data_plate!r} is declared for {layout.full_size} data, and "
            f"these are {num_data}: write "
            f"pyro.plate({layout.data_plate!r}, {num_data}, subsample=batch), or, if they are not "
            f"scaled up, pyro.plate({layout.data_plate!r}, len(batch))."
        )
