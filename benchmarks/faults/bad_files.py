"""Models and files that are wrong as a whole, not in one argument."""

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import vilvm
from benchmarks.faults.bad_pairs import (
    ChangedLoss,
    fitted,
    model,
    pair,
    quiet,
    rows_of_data,
    same,
)
from vilvm.data import datasets

__all__ = ["other_cases"]


def other_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Cases of models and of files."""
    for size, rows, batch in (
        (10_000, 100, None),
        (10_000, 100, 10),
        (50, 100, None),
        (101, 100, 10),
    ):
        yield (
            f"fit(plate of {size} on {rows} data in batches of {batch})",
            partial(_oversized, size, rows, batch),
        )
    yield "fit(a pair within no_grad)", _within_no_grad
    yield "fit(a loss of shape one by one)", _one_by_one
    yield "fit(two names that are one parameter)", _two_names
    for name, write in _FILES.items():
        for reader in ("arrays", "on_disk"):
            yield f"{reader}({name})", partial(_read, reader, name, write)
    for name, content in _DATA_FILES.items():
        yield (
            f"posteriordb({name})",
            partial(_read_posterior, content, np.zeros((2, 5))),
        )
    for name, draws in _DRAWS_FILES.items():
        yield (
            f"posteriordb(draws that are {name})",
            partial(_read_posterior, '{"y": [1.0, 2.0]}', draws),
        )
    yield "on_disk(numbers that do not fit)", _too_large_for_bytes


def _oversized(size: int, data: int, batch: int | None) -> Any:
    def model(x: Any) -> None:
        with pyro.plate("data", size, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Any) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", size, subsample=x):
            pyro.sample("z", dist.Normal(slope * x, 0.7).to_event(1))

    with quiet():
        lvm: Any = vilvm.Pair(model, guide)
        return vilvm.fit(lvm, rows_of_data(data), steps=1, batch_size=batch).steps


def _within_no_grad() -> bool:
    with torch.no_grad():
        within = fitted(lvm=pair(), data=rows_of_data(), steps=2)
    return same(within, fitted(lvm=pair(), data=rows_of_data(), steps=2))


def _one_by_one() -> bool:
    found = fitted(
        lvm=pair(),
        data=rows_of_data(),
        steps=2,
        objective=ChangedLoss(lambda loss: loss.reshape(1, 1)),
    )
    return same(found, fitted(lvm=pair(), data=rows_of_data(), steps=2))


def _two_names() -> Any:
    def guide(x: Any) -> None:
        slope = pyro.param("a.b", torch.tensor(0.4)) + pyro.param(
            "a/b", torch.tensor(0.1)
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.7).to_event(1))

    lvm: Any = vilvm.Pair(model, guide)
    vilvm.log_weights(lvm, rows_of_data())
    return len(list(lvm.parameters())) == 2


def _npy(shape: str, numbers: bytes, kind: str = "<f4") -> bytes:
    """An .npy file with `shape` in its header."""
    header = (
        f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    )
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + numbers


_FILES: dict[str, bytes] = {
    "an empty file": b"",
    "text": b"x, y\n1, 2\n",
    "a header that lies about its rows": _npy("(1000000000000, 2)", bytes(80)),
    "a header that lies by one row": _npy("(11, 2)", bytes(80)),
    "a header with a negative size": _npy("(-10, 2)", bytes(80)),
    "a header with a shape of text": _npy("('10', 2)", bytes(80)),
    "a header with a huge shape": _npy(f"({2**62}, {2**62})", bytes(80)),
    "a header without an end": b"\x93NUMPY\x01\x00\xff\xff{'descr'",
    "a version that is not": b"\x93NUMPY\x09\x00" + bytes(80),
    "pickled objects": _npy("(10,)", bytes(80), "|O"),
    "a header that is code": _npy("(__import__('os'),)", bytes(80)),
    "complex numbers": _npy("(5, 2)", bytes(80), "<c8"),
    "text of numbers": _npy("(10, 2)", bytes(80), "<U1"),
}
_DATA_FILES: dict[str, str] = {
    "NaN": '{"y": NaN}',
    "NaN in an array": '{"y": [1.0, NaN]}',
    "infinity": '{"y": [1.0, Infinity]}',
    "a number beyond floats": f'{{"y": [{"1" + "0" * 400}]}}',
    "a single number beyond floats": f'{{"y": {"1" + "0" * 400}}}',
    "a number of 5,000 digits": f'{{"y": {"1" * 5000}}}',
    "nested too deeply": '{"y": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "a list": "[1, 2]",
    "ragged rows": '{"y": [[1.0], [1.0, 2.0]]}',
    "text": '{"y": "a"}',
    "a truth": '{"y": true}',
    "cut off": '{"y": [1.0',
}
_DRAWS_FILES: dict[str, Any] = {
    "none": np.zeros((0, 0)),
    "no draws of ten chains": np.zeros((10, 0)),
    "complex": np.zeros((2, 5)) + 1j,
    "NaN": np.full((2, 5), math.nan),
    "text": np.array([["a", "b"]]),
    "a vector": np.zeros(10),
    "truths": np.ones((2, 5), dtype=bool),
}


def _read(reader: str, name: str, content: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder, "x.npy")
        path.write_bytes(content)
        if reader == "arrays":
            return datasets.arrays(path)
        return datasets.on_disk(path).subset(slice(0, 5)).x


def _read_posterior(data: str, draws: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder, quiet():
        Path(folder, "a-b.data.json").write_text(data)
        np.savez(Path(folder, "a-b.draws.npz"), mu=draws)
        return datasets.posteriordb("a-b", folder)


def _too_large_for_bytes() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        np.save(path, np.full((10, 2), 300))
        return datasets.on_disk(path, dtype=torch.uint8).subset(slice(0, 5)).x
