"""MNIST: 60,000 training and 10,000 test pictures of handwritten digits, 28 × 28.

Reference: Gradient-based learning applied to document recognition, LeCun, Bottou, Bengio and
Haffner, 1998.
"""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from vilvm._runtime.argument_checks import check_path, check_seed, optional
from vilvm._runtime.extras import require
from vilvm.data.data import Data, Transform
from vilvm.data.datasets.dataset import Dataset, carve
from vilvm.data.transforms import DynamicBinarisation

__all__ = ["mnist"]

_SECONDS = 5.0  # timeout of a connection


def mnist(
    root: str | Path | None = None,
    *,
    validation: int = 5000,
    transform: Transform | None = DynamicBinarisation(),  # noqa: B008 (frozen)
    download: bool = True,
    seed: int = 0,
) -> Dataset:
    """MNIST with its official split, grey levels in [0, 1], rows of 784.

    ``MNIST/raw/`` in the folder `root` holds the official files, compressed or not; missing files
    are downloaded into it. Reading them needs torchvision (``pip install 'vilvm[mnist]'``).

    Arguments:
        root: the folder; by default the environment variable VILVM_DATA, else the user's cache.
        validation: number of the 60,000 that are validation data, drawn from `seed`.
        transform: applied to each batch.
        download: whether to download missing files.
        seed: of the validation split.

    Returns:
        The three splits, with labels.

    Raises:
        ImportError: torchvision is not installed.
        FileNotFoundError: the files are not on disk and cannot be downloaded; the message names
            the folder for them.
        ValueError: a file on disk is truncated or altered, or `validation` is out of range.

    Examples:
        >>> from vilvm.data.datasets import mnist
        >>> try:
        ...     mnist("/a/folder/without/the/files", download=False)
        ... except FileNotFoundError as error:
        ...     print(str(error)[:21])
        No MNIST in /a/folder
    """
    seed = check_seed("mnist: seed", seed)
    root = optional(check_path, "mnist: root", root)
    folder = Path(
        root or os.environ.get("VILVM_DATA") or platformdirs.user_cache_path("vilvm")
    )
    train = _split(folder, "train", 60_000, download)
    test = _split(folder, "test", 10_000, download)
    return Dataset(*carve(train, validation, seed), test).with_transform(transform)


def _split(folder: Path, split: str, count: int, download: bool) -> Data:
    loaded = _load(folder, split == "train", download)
    pictures, labels = loaded.data, loaded.targets
    if pictures.shape != (count, 28, 28) or len(labels) != count:
        raise ValueError(
            f"MNIST in {folder} has {len(pictures)} {split} pictures instead of {count}: "
            "remove it, and download it again."
        )
    x = pictures.flatten(1).float() / 255
    return Data(x, "mnist", split, labels=labels, image_shape=(28, 28))


def _load(folder: Path, train: bool, download: bool) -> Any:
    require("torchvision", extra="mnist")
    from torchvision.datasets import MNIST  # here, since its import takes seconds

    try:
        return MNIST(str(folder), train=train, download=False)
    except RuntimeError:
        pass  # the files are missing
    except (ValueError, EOFError, OSError, AssertionError, TypeError) as error:
        raise ValueError(
            f"MNIST in {folder / 'MNIST' / 'raw'} is truncated or altered ({error}): remove it, "
            "and download it again."
        ) from None
    if not download:
        raise FileNotFoundError(_advice(folder, "it is not there, and download=False"))
    try:
        with _short_timeout():
            return MNIST(str(folder), train=train, download=True)
    except Exception as error:  # mirror, proxy and disk raise different errors
        text = " ".join(str(error).split())
        # torchvision lists its mirrors, each with an error
        reasons = re.findall(r"<urlopen error (.*?)>", text) or [text[:120]]
        raise FileNotFoundError(
            _advice(folder, f"its download failed ({reasons[-1]})")
        ) from None


def _advice(folder: Path, reason: str) -> str:
    return (
        f"No MNIST in {folder}: {reason}. Put the four official files into "
        f"{folder / 'MNIST' / 'raw'}, or point VILVM_DATA at a folder that holds MNIST/raw."
    )


@contextmanager
def _short_timeout() -> Iterator[None]:
    """A context in which a connection that stalls for seconds fails."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
