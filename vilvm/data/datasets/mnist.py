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
from vilvm.data.data import Data, Transform
from vilvm.data.datasets.dataset import Dataset, carve
from vilvm.data.transforms import DynamicBinarisation

__all__ = ["mnist"]

_SECONDS = 5.0


def mnist(
    root: str | Path | None = None,
    *,
    validation: int = 5000,
    transform: Transform | None = DynamicBinarisation(),  # noqa: B008 (frozen)
    download: bool = True,
    seed: int = 0,
) -> Dataset:
    """MNIST with its official split, grey levels in [0, 1], rows of 784.

    Looked for in `root`, else in the folder that the environment variable VILVM_DATA names, else
    in the user's cache; a root holds ``MNIST/raw/`` with the official files, compressed or not. If
    they are not there, they are downloaded into it.

    Arguments:
        root: the folder.
        validation: how many of the 60,000 to carve out as validation data, from `seed`.
        transform: applied to each batch.
        download: whether to try the network.
        seed: of the validation split.

    Raises:
        FileNotFoundError: the files are neither on disk nor to be had from the network within
            seconds; says where to put them.
        ValueError: a file on disk is truncated or altered, or `validation` is out of range.
    """
    seed = check_seed("mnist: seed", seed)
    root = optional(check_path, "mnist: root", root)
    folder = Path(root or os.environ.get("VILVM_DATA") or platformdirs.user_cache_path("vilvm"))
    splits = []
    for split, count in (("train", 60_000), ("test", 10_000)):
        found = _load(folder, split == "train", download)
        if found.data.shape != (count, 28, 28) or len(found.targets) != count:
            raise ValueError(
                f"MNIST in {folder} has {len(found.data)} {split} pictures in place of {count}: "
                "remove it, and get it again."
            )
        splits.append(
            Data(
                found.data.flatten(1).float() / 255, "mnist", split, None, found.targets, (28, 28)
            )
        )
    return Dataset(*carve(splits[0], validation, seed), splits[1]).with_transform(transform)


def _load(folder: Path, train: bool, download: bool) -> Any:
    from torchvision.datasets import MNIST  # here, for it takes seconds to import

    try:
        return MNIST(str(folder), train=train, download=False)
    except RuntimeError:
        pass  # not there: torchvision says "not found"
    except (ValueError, EOFError, OSError, AssertionError, TypeError) as error:
        raise ValueError(
            f"MNIST in {folder / 'MNIST' / 'raw'} is truncated or altered ({error}): remove it, "
            "and get it again."
        ) from None
    if not download:
        raise FileNotFoundError(_advice(folder, "it is not there, and download=False"))
    try:
        with _impatient():
            return MNIST(str(folder), train=train, download=True)
    except Exception as error:
        # Whatever a mirror, a proxy or a disk does is, to the user, that MNIST could not be had.
        text = " ".join(str(error).split())
        # torchvision lists its mirrors, each with what came of it
        reasons = re.findall(r"<urlopen error (.*?)>", text)
        raise FileNotFoundError(
            _advice(folder, f"its download failed ({reasons[-1] if reasons else text[:120]})")
        ) from None


def _advice(folder: Path, reason: str) -> str:
    return (
        f"No MNIST in {folder}: {reason}. Put the four official files into "
        f"{folder / 'MNIST' / 'raw'}, or point VILVM_DATA at a folder "
        "that holds MNIST/raw."
    )


@contextmanager
def _impatient() -> Iterator[None]:
    """No connection may keep us waiting for longer than seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
