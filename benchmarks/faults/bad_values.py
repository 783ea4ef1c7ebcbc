"""Bad values of each kind of argument, and right ones of an unusual type."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro.optim
import torch
from pyro.infer import Trace_ELBO

import vilvm
from benchmarks.faults.bad_pairs import ChangedLoss, guide, model, pair
from vilvm import data
from vilvm.data import datasets

__all__ = ["KINDS", "OTHER_NAMES", "UNUSUAL", "Made"]


class Made:
    """A value that is created for each call."""

    def __init__(self, make: Callable[[], Any]):
        self.make = make

    def __call__(self) -> Any:
        return self.make()


_NO_NUMBERS = {"text": "3", "None": None, "NaN": math.nan, "True": True}
_BAD_COUNTS = {
    **_NO_NUMBERS,
    "0": 0,
    "2.5": np.float64(2.5),
    "two numbers": torch.tensor([1, 2]),
}
_BAD_REALS = {key: value for key, value in _NO_NUMBERS.items() if key != "infinity"}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "None"}


def _bad_data() -> dict[str, Any]:
    x = torch.zeros(8, 2)
    return {
        "None": None,
        "text": "mnist",
        "a number": 3,
        "an array of text": np.array([["a", "b"]] * 8),
        "a masked array": np.ma.masked_array(np.zeros((8, 2)), np.eye(8, 2) > 0),
        "a masked array in a dict": {
            "x": np.ma.masked_array(np.zeros(8), np.arange(8) > 3)
        },
        "nothing": torch.zeros(0, 2),
        "an empty dict": {},
        "a set": {1, 2},
        "NaN": torch.full((8, 2), math.nan),
        "an infinity": x + torch.tensor([0.0, math.inf]),
        "complex numbers": torch.zeros(8, 2, dtype=torch.complex64),
        "a sparse tensor": torch.eye(8, 2).to_sparse(),
        "a meta tensor": torch.zeros(8, 2, device="meta"),
        "a list of dicts": [{"x": x[0]}, {"x": x[1]}],
        "a whole data set": datasets.Dataset(
            vilvm.Data(x), vilvm.Data(x), vilvm.Data(x)
        ),
        "a generator": Made(lambda: (row for row in x)),
        "a packed sequence": torch.nn.utils.rnn.pack_sequence(
            [torch.zeros(3, 2), torch.zeros(2, 2)]
        ),
    }


def _bad_pairs() -> dict[str, Any]:
    return {
        "None": None,
        "text": "vae",
        "a tuple": (model, guide),
        "a class": vilvm.Pair,
        "a function": model,
        "a network": torch.nn.Linear(2, 2),
        "a number": 3,
    }


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "count": lambda: _BAD_COUNTS,
    "count or None": lambda: _without_none(_BAD_COUNTS),
    "seed": lambda: {
        **_without_none(_NO_NUMBERS),
        "None": None,
        "-1": -1,
        "1.5": 1.5,
        "2^63": 2**63,
    },
    "positive": lambda: {**_BAD_REALS, "0": 0, "-1": -1.0},
    "positive or None": lambda: _without_none({**_BAD_REALS, "0": 0, "-1": -1.0}),
    "seconds or None": lambda: _without_none({**_BAD_REALS, "-1": -1.0}),
    "seconds": lambda: {**_BAD_REALS, "-1": -1.0},
    "probability": lambda: {**_NO_NUMBERS, "0": 0.0, "1": 1.0},
    "choice": lambda: {
        "a typing error": "elbow",
        "None": None,
        "3": 3,
        "a list": ["elbo"],
        "a dict": {},
    },
    "function": lambda: {"text": "elbo", "a number": 3, "a list": [1]},
    "functions": lambda: {
        "a function": print,
        "text": "stop",
        "a number": 3,
        "None": None,
        "a list of text": ["stop"],
    },
    "optimizer": lambda: {
        "text": "adam",
        "a number": 3,
        "an ELBO": Trace_ELBO(),
        "Pyro's Adam": pyro.optim.Adam({"lr": 0.1}),  # pyright: ignore[reportAttributeAccessIssue]
        "Pyro's AdagradRMSProp": pyro.optim.AdagradRMSProp({}),
        "Pyro's AdagradRMSProp unmade": pyro.optim.AdagradRMSProp,
        "L-BFGS": torch.optim.LBFGS,
        "a scheduler": torch.optim.lr_scheduler.StepLR,
        "a function of nothing": Made(lambda: lambda parameters: None),
        "Adam without a number": partial(torch.optim.Adam, **{"lr": "0.1"}),
        "a negative rate": partial(torch.optim.Adam, lr=-1.0),
    },
    "scheduler": lambda: {
        "text": "cosine",
        "a number": 3,
        "Pyro's": pyro.optim.StepLR,  # pyright: ignore[reportAttributeAccessIssue]
        "an optimizer": torch.optim.SGD,
        "without its length": torch.optim.lr_scheduler.OneCycleLR,
        "a function of nothing": Made(lambda: lambda optimizer: None),
    },
    "objective": lambda: {
        "text": "elbo",
        "a class": Trace_ELBO,
        "a number": 3,
        "one that gives None": ChangedLoss(lambda loss: None),
        "one that gives a vector": ChangedLoss(lambda loss: loss.expand(3)),
        "one that gives text": ChangedLoss(lambda loss: "loss"),
        "one that gives a complex number": ChangedLoss(lambda loss: loss + 0j),
    },
    "data": _bad_data,
    # which a guide may take
    "batch": lambda: {
        key: value for key, value in _bad_data().items() if key != "an infinity"
    },
    "data or None": lambda: _without_none(_bad_data()),
    "pair": _bad_pairs,
    "like": lambda: {
        key: _bad_data()[key]
        for key in (
            "text",
            "a number",
            "an array of text",
            "a masked array",
            "nothing",
            "a set",
            "complex numbers",
            "a sparse tensor",
        )
    },
    "models": lambda: {
        "one pair": pair(),
        "None": None,
        "empty": {},
        "text": "vae",
        "a list": [pair()],
        "of text": {"a": "vae"},
    },
    "tensor": lambda: {
        "None": None,
        "text": "z",
        "a number": 3.0,
        "a list": [[0.0, 1.0]],
        "a NumPy array": np.zeros((2, 2)),
        "NaN": torch.full((2, 2), math.nan),
    },
    "tensor or None": lambda: _without_none(KINDS["tensor"]()),
    "folder": lambda: {
        "NUL": "a\0b",
        "a number": 3,
        "a list": ["run"],
        "a file": __file__,
    },
    "path": lambda: {
        "NUL": "a\0b.npy",
        "a number": 3,
        "a list": ["x.npy"],
        "no file": "nothing.npy",
        "a folder": str(Path(__file__).parent),
        "text of another kind": __file__,
        "None": None,
        "empty": "",
    },
    "sizes": lambda: {
        "a number": 3,
        "text": "16",
        "None": None,
        "0": (0,),
        "-1": (4, -1),
        "2.5": (2.5,),
        "of text": ("4",),
        "True": (True,),
    },
    "flag": lambda: {"text": "no", "None": None, "a number": 3},
}
KINDS["side"] = KINDS["count"]

# By kind, values of an unusual type, and the plain values with which results must agree.
_INTEGERS = {"NumPy's int8": np.int8, "a tensor": torch.tensor}
UNUSUAL: dict[str, dict[str, tuple[Any, Any]]] = {
    "count": {label: (make(2), 2) for label, make in _INTEGERS.items()},
    "count or None": {label: (make(2), 2) for label, make in _INTEGERS.items()},
    "seed": {label: (make(3), 3) for label, make in _INTEGERS.items()},
    "positive": {"NumPy's float32": (np.float32(1.5), 1.5)},
    "probability": {"a tensor": (torch.tensor(0.25), 0.25)},
}
# Further nouns that name an argument of a kind in a message.
OTHER_NAMES = {
    "pair": ("latent variable model", "has no method", "torch.nn.Module"),
    "models": ("latent variable model", "has no method"),
    "data": ("data", "batch", "tensor"),
    "data or None": ("data", "batch", "tensor", "like"),
    "batch": ("data", "batch", "tensor"),
    "like": ("like", "data", "batch", "tensor"),
    "objective": ("loss", "ChangedLoss"),
    "optimizer": ("Adam", "optimizer"),
    "scheduler": ("scheduler", "OneCycleLR"),
    "path": ("path", "file", "folder", "nothing.npy", "bad_values.py", "NUL"),
    "folder": ("folder", "run_dir"),
    "sizes": ("hidden", "channels"),
    "tensor": ("first", "ends", "tensor", "shape"),
    "tensor or None": ("tensor",),
}


_OTHER_KINDS: dict[str, dict[str, Any]] = {
    "choice of device": {
        "a typing error": "gpu",
        "3.5": 3.5,
        "a list": ["cpu"],
        "empty": "",
    },
    "choices": {
        "a typing error": ["elbow"],
        "one word": "elbow",
        "a number": 3,
        "numbers": [3],
        "nothing": [],
    },
    "choice or None": {
        "a typing error": "elbow",
        "3": 3,
        "a list": ["iwae"],
        "a dict": {},
    },
    "at least 0": {**_without_none(_NO_NUMBERS), "-1": -1, "2.5": 2.5},
    "at least 2": {**_BAD_COUNTS, "1": 1},
    "folds": {**_BAD_COUNTS, "1": 1, "more than data": 50},
    "too few": {**_without_none(_BAD_COUNTS), "1": 1},
    "wrong counts": _BAD_COUNTS,
    "start": {**_without_none(_NO_NUMBERS), "-1": -1, "2.5": 2.5},
    "start of annealing": {**_NO_NUMBERS, "-0.1": -0.1, "1.5": 1.5},
    "share": {**_NO_NUMBERS, "0": 0.0, "-0.1": -0.1, "1.5": 1.5},
    "latents": {
        "None": None,
        "a tensor": torch.zeros(2, 2),
        "empty": {},
        "text": "z",
        "of text": {"z": "0"},
        "another": {"w": torch.zeros(2, 2)},
        "a list": [torch.zeros(2, 2)],
        "of NumPy": {"z": np.zeros((2, 2))},
    },
    "weights": {
        "None": None,
        "text": "w",
        "a NumPy array": np.zeros(100),
        "NaN": torch.full((100,), math.nan),
        "infinity": torch.full((100,), math.inf),
        "nothing": torch.zeros(0),
        "complex": torch.zeros(100) + 0j,
    },
    "no history": {
        "None": None,
        "text": "h",
        "a number": 3,
        "a list": [1.0, 2.0],
        "an array": np.zeros(30),
        "a dict": {},
    },
    "transforms": {
        "text": "binarise",
        "a number": 3,
        "None": None,
        "nothing": (),
        "a list": [data.DynamicBinarisation()],
        "of text": ("a",),
    },
    "schedule": {"text": "ais", "a number": 3, "a dict": {}},
    "features": {
        "None": None,
        "text": "f",
        "a vector": np.zeros(30),
        "NaN": np.full((30, 2), math.nan),
        "another width": np.zeros((30, 3)),
        "one row": np.zeros((1, 2)),
        "a number": 3.0,
    },
    "dict or None": {
        "text": "z",
        "a number": 3,
        "an unknown name": {"unheard": ["a"]},
        "a list": ["z"],
    },
    "coordinates": {"text": "z", "a number": 3, "a list": ["z"]},
    "network": {
        "text": "mlp",
        "a number": 3,
        "a function": print,
        "a class": torch.nn.Linear,
    },
    "no ELBO": {
        "text": "elbo",
        "a class": Trace_ELBO,
        "None": None,
        "a number": 3,
        "a network": torch.nn.Linear(1, 1),
    },
    "array or path": {
        "None": None,
        "text": "nothing.npy",
        "a table": "table.csv",
        "a number": 3,
        "words": np.array([["a"], ["b"]]),
        "one number": np.array(3.0),
        "ragged": [[1.0], [1.0, 2.0]],
        "NaN": np.full((30, 2), math.nan),
        "complex": np.zeros((30, 2)) + 0j,
        "nothing": np.zeros((0, 2)),
        "one row": np.zeros((1, 2)),
        "dates": np.zeros(30, dtype="datetime64[s]"),
        "objects": np.array([object()] * 30),
        "masked": np.ma.masked_array(np.zeros((30, 2)), np.eye(30, 2) > 0),
        "NUL": "a\0b.npy",
        "a folder": str(Path(__file__).parent),
    },
    "split": {**_BAD_COUNTS, "all": 10**6},
    "split or None": {**_without_none(_BAD_COUNTS), "all": 10**6},
    "transform": {
        "text": "binarise",
        "a number": 3,
        "a class": data.DynamicBinarisation,
        "a function": abs,
    },
    "no Data": {"None": None, "a tensor": torch.zeros(8, 2), "text": "x"},
    "name of a posterior": {
        "another": "nothing-at-all",
        "a number": 3,
        "None": None,
        "NUL": "a\0b",
    },
}
KINDS |= {kind: partial(dict, values) for kind, values in _OTHER_KINDS.items()}
KINDS["draws"] = KINDS["count"]
for _kind in ("draws", "wrong counts"):
    UNUSUAL[_kind] = {label: (make(9), 9) for label, make in _INTEGERS.items()}
for _kind in ("split", "split or None", "at least 2", "folds", "at least 0", "start"):
    UNUSUAL[_kind] = {label: (make(2), 2) for label, make in _INTEGERS.items()}
UNUSUAL["side"] = {label: (make(8), 8) for label, make in _INTEGERS.items()}
UNUSUAL["sizes"] = {}
OTHER_NAMES |= {
    "no Data": ("carve",),
    "split": ("validation",),
    "array or path": (
        "arrays",
        "data",
        "nothing.npy",
        "table.csv",
        "folder",
        "NUL",
        "file",
    ),
    "transform": ("transform",),
    "transforms": ("transforms",),
    "latents": ("latent",),
    "features": ("features", "frechet_distance"),
    "weights": ("log-weights", "psis"),
    "name of a posterior": ("posterior", "NUL"),
    "schedule": ("Schedule", "schedule"),
    "no history": ("History", "history"),
    "choices": ("bounds",),
    "network": ("layer", "encoder", "prior"),
}
