"""Turns errors inside a user's model or guide into one sentence with the user's line."""

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm._runtime.memory import is_out_of_memory
from vilvm.data.missing import Masked
from vilvm.data.tensors import tensors_of
from vilvm.lvm import ContractError, NonFiniteError

__all__ = ["SampleLines", "plain_errors", "short_message", "without_shapes"]

_USER_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
_DTYPE_ERRORS = ("must have the same dtype", "Found dtype", "expected scalar type")
_SHAPE_ERRORS = ("shapes cannot be multiplied", "must match the size of tensor")
_NO_TENSOR = re.compile(
    "must be Tensor, not |unsupported operand type|has no attribute"
)
_NOT_THE_USERS = (
    str(Path(__file__).parents[1]),
    "site-packages",
    "contextlib",
    "<frozen",
    str(Path(traceback.__file__).parent),
)


@contextmanager
def without_shapes() -> Iterator[None]:
    """Removes the trace shapes that Pyro appends to a ContractError."""
    try:
        yield
    except ContractError as error:
        if "Trace Shapes:" not in str(error):
            raise
        raise type(error)(_sentence(error)) from None


@contextmanager
def plain_errors(part: str, batch: Any) -> Iterator[None]:
    """Turns an error inside the user's model or guide into one sentence with the user's line."""
    try:
        yield
    except ContractError as error:
        raise type(error)(_sentence(error)) from None
    except (torch.OutOfMemoryError, NotImplementedError) as error:
        if "ImproperUniform" not in str(error):
            raise
        raise ContractError(
            f"The {part} has a flat prior, from which nothing can be drawn: put a proper prior on "
            "its latents to draw from it."
        ) from None
    except _USER_ERRORS as error:
        if is_out_of_memory(error):  # the caller retries with fewer samples
            raise
        raise _contract_error(part, batch, error) from None


def _contract_error(part: str, batch: Any, error: Exception) -> ContractError:
    where = _user_line(traceback.extract_tb(error.__traceback__))
    reason = short_message(error)
    message = (
        f"The {part} fails on a batch of {_describe(batch)}{where}: {type(error).__name__}: "
        f"{_ended(reason)} {_of_batch(batch, reason) or _advice(part, error, reason, where)}"
    )
    if reason.endswith("but found NaN."):
        return NonFiniteError(message)
    return ContractError(message)


def _advice(part: str, error: Exception, reason: str, where: str) -> str:
    if any(words in reason for words in _DTYPE_ERRORS):
        return (
            "The data and the model's parameters are of two number types: convert the data, "
            ".float() or .double()."
        )
    if isinstance(error, KeyError):
        return (
            "If it is a pyro.param, give it an initial value at its first use: the guide "
            "runs before the model."
        )
    # without a line in the user's code, the call itself failed
    if isinstance(error, TypeError) and "positional argument" in reason and not where:
        return (
            f"The {part} gets one argument, the batch: pass several tensors as one tuple, (x, y), "
            "and unpack it inside, x, y = batch."
        )
    return f"Check the shapes and values that the {part} computes from this batch."


def _of_batch(batch: Any, reason: str) -> str:
    """What is wrong with the batch, if it shows in the error."""
    if isinstance(batch, Masked):
        return (
            "These data have a mask of missing values: wrap the model, "
            "vilvm.wrappers.partly_observed(lvm)."
        )
    if isinstance(batch, Mapping | tuple) and _NO_TENSOR.search(reason):
        kind = "dict" if isinstance(batch, Mapping) else "tuple"
        return f"The model takes a tensor: pass it, and not a {kind} of tensors."
    return _of_matrix(batch, reason) if isinstance(batch, Tensor) else ""


def _of_matrix(batch: Tensor, reason: str) -> str:
    if batch.dim() != 2:
        return ""
    if any(words in reason for words in _SHAPE_ERRORS):
        return f"Is the model made for data of {batch.shape[1]} columns?"
    if "found NaN" in reason and bool((batch < 0).any()):
        return "The data hold negative numbers; does the model take logarithms, as of counts?"
    return ""


def _sentence(error: Exception) -> str:
    """The message of an error on one line, without trace shapes."""
    return " ".join(str(error).split("Trace Shapes:")[0].split())


def _ended(sentence: str) -> str:
    """The sentence with a full stop."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def short_message(error: Exception) -> str:
    """The message of an error on one line, without the tensors and traces printed after it."""
    reason, found, values = _sentence(error).partition("but found invalid values")
    if not found:
        return reason[:400]
    if "nan" in values:
        return f"{reason[:400]}but found NaN."
    return f"{reason[:400]}but found other values."


def _user_line(stack: traceback.StackSummary) -> str:
    """' (in FUNCTION, FILE:LINE)' of the innermost frame outside vilvm and installed packages."""
    frames = [
        f for f in stack if not any(part in f.filename for part in _NOT_THE_USERS)
    ]
    if not frames:
        return ""
    last = frames[-1]
    return f" (in {last.name}, {Path(last.filename).name}:{last.lineno})"


class SampleLines(Messenger):
    """Records the user's line of every sample statement, ' (in FUNCTION, FILE:LINE)', by site."""

    def __init__(self) -> None:
        super().__init__()
        self.by_site: dict[str, str] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.by_site[msg["name"]] = _user_line(traceback.extract_stack())


def _describe(batch: Any) -> str:
    shapes = [str(tuple(tensor.shape)) for tensor in tensors_of(batch)]
    if not shapes:
        return f"type {type(batch).__name__}"
    if len(shapes) == 1:
        return f"shape {shapes[0]}"
    return f"shapes {', '.join(shapes)}"
