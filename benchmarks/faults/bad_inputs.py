"""Some 2,500 inputs that are wrong, or right in an unusual type, one at a time, in calls that are
right otherwise.

``cases()`` gives each a name and a function that makes the call; ``verdict`` says of what came of
it

    "one sentence"  it was refused by an error of ours: one line, which names the argument
    "right"         it was taken, and the result equals that of the plain form (NumPy's 3 for 3)
    "internals"     it was refused by another error, or one with words of Pyro, torch or Python in it
    "accepted"      it was taken, and should not have been

Every public function of vilvm stands in ``_calls`` with arguments that are right, and each
argument has a kind, ``_KINDS``, whose bad values are tried in its place.
"""

import contextlib
import io
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import vilvm
import vilvm.weights
from vilvm import (
    data,
    diagnostics,
    evaluation,
    export,
    guides,
    networks,
    objectives,
    plots,
    priors,
    training,
    wrappers,
)
from vilvm.data import datasets
from vilvm.evaluation import interpolation
from vilvm.wrappers.partly_observed import partly_observed

__all__ = ["cases", "verdict"]

_KNOWN = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    FileNotFoundError,
    FloatingPointError,
    vilvm.PeerLostError,
)
_INTERNALS = re.compile(
    r"Trace Shapes|_pyro_|param_state|Traceback|site-packages|torch\._|aten::|INTERNAL ASSERT|0x[0-9a-f]{8}|"
    r"has no attribute|unsupported operand|not supported between|object is not|positional argument|unexpected keyword|"
    r"must be (real|tuple|Tensor)|argument of type|cannot be interpreted|invalid combination|could not convert|Expected |expected "
)
_MOST = 600  # characters of a message


def verdict(outcome: Any) -> str:
    """What came of a case, of its error or its result; see above."""
    if not isinstance(outcome, BaseException):
        return "right" if outcome is True else "accepted"
    text = str(outcome.args[0]) if isinstance(outcome, KeyError) and outcome.args else str(outcome)
    # the words of the pair's own code
    text = re.sub(r"( fails on a batch of .* \(in \w+, bad_inputs.py:\d+\)): .*", r"\1", text)
    # torch's words, or those of the user's function
    text = re.sub(r"(could not be made of the parameters).*", r"\1", text)
    named = getattr(outcome, "named", ())
    clear = (
        isinstance(outcome, _KNOWN)
        and "\n" not in text
        and 0 < len(text) <= _MOST
        and not _INTERNALS.search(text)
    )
    return (
        "one sentence"
        if clear and (not named or any(word in text for word in named))
        else "internals"
    )


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """The name of every case, and the function that makes its call."""
    for call in _calls():
        for argument, kind in call.kinds.items():
            for label, value in _KINDS[kind]().items():
                yield f"{call.name}({argument}={label})", _Case(call, argument, kind, value)
            for label, (value, plain) in _UNUSUAL.get(kind, {}).items():
                yield f"{call.name}({argument}={label})", _Case(call, argument, kind, value, plain)
    yield from _others()


@dataclass(frozen=True)
class _Call:
    """A public function, arguments that are right, and the kinds of those whose place bad ones
    take.
    """

    name: str
    function: Callable[..., Any]
    right: Callable[[], dict[str, Any]]
    kinds: Mapping[str, str]

    def __call__(self, **changed: Any) -> Any:
        return self.function(**{**self.right(), **changed})


@dataclass(frozen=True)
class _Case:
    """A call with one argument changed; with `plain`, also with that in its place, which must give
    the same.
    """

    call: _Call
    argument: str
    kind: str
    value: Any
    plain: Any = None

    def __call__(self) -> Any:
        given = self.value() if isinstance(self.value, _Made) else self.value
        try:
            with _quiet():
                found = self._made(given)
                return _same(found, self._made(self.plain)) if self.plain is not None else found
        except Exception as error:
            error.named = (self.argument, *_ALSO.get(self.kind, ()))  # type: ignore[attr-defined]
            raise

    def _made(self, value: Any) -> Any:
        torch.manual_seed(0)
        return self.call(**{self.argument: value})


class _Made:
    """A value that is made for each call."""

    def __init__(self, make: Callable[[], Any]):
        self.make = make

    def __call__(self) -> Any:
        return self.make()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


# Values
# -------------------------------------------------------------------------------------------------------------------

_NO_NUMBERS = {"text": "3", "None": None, "NaN": math.nan, "True": True}
_BAD_COUNTS = {**_NO_NUMBERS, "0": 0, "2.5": np.float64(2.5), "two numbers": torch.tensor([1, 2])}
_BAD_REALS = {key: value for key, value in _NO_NUMBERS.items() if key != "infinity"}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "None"}


def _bad_data() -> dict[str, Any]:
    x = torch.zeros(8, 2)
    return {
        "None": None,
        "text": "mnist",
        "a number": 3,
        "a NumPy array": np.zeros((8, 2)),
        "a masked array": np.ma.masked_array(np.zeros((8, 2)), np.eye(8, 2) > 0),
        "a masked array in a dict": {"x": np.ma.masked_array(np.zeros(8), np.arange(8) > 3)},
        "nothing": torch.zeros(0, 2),
        "an empty dict": {},
        "a set": {1, 2},
        "NaN": torch.full((8, 2), math.nan),
        "an infinity": x + torch.tensor([0.0, math.inf]),
        "complex numbers": torch.zeros(8, 2, dtype=torch.complex64),
        "a sparse tensor": torch.eye(8, 2).to_sparse(),
        "a meta tensor": torch.zeros(8, 2, device="meta"),
        "a list of dicts": [{"x": x[0]}, {"x": x[1]}],
        "a whole data set": datasets.Dataset(vilvm.Data(x), vilvm.Data(x), vilvm.Data(x)),
        "a generator": _Made(lambda: (row for row in x)),
        "a packed sequence": torch.nn.utils.rnn.pack_sequence(
            [torch.zeros(3, 2), torch.zeros(2, 2)]
        ),
    }


def _bad_pairs() -> dict[str, Any]:
    return {
        "None": None,
        "text": "vae",
        "a tuple": (_model, _guide),
        "a class": vilvm.Pair,
        "a function": _model,
        "a network": torch.nn.Linear(2, 2),
        "a number": 3,
    }


_KINDS: dict[str, Callable[[], dict[str, Any]]] = {
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
    "choice": lambda: {"a typing error": "elbow", "None": None, "3": 3, "a list": ["elbo"], "a dict": {}},
    "function": lambda: {"text": "elbo", "a number": 3, "a list": [1]},
    "functions": lambda: {"a function": print, "text": "stop", "a number": 3, "None": None, "a list of text": ["stop"]},
    "optimizer": lambda: {
        "text": "adam",
        "a number": 3,
        "an ELBO": Trace_ELBO(),
        "Pyro's Adam": pyro.optim.Adam({"lr": 0.1}),  # pyright: ignore[reportAttributeAccessIssue]
        "Pyro's AdagradRMSProp": pyro.optim.AdagradRMSProp({}),
        "Pyro's AdagradRMSProp unmade": pyro.optim.AdagradRMSProp,
        "L-BFGS": torch.optim.LBFGS,
        "a scheduler": torch.optim.lr_scheduler.StepLR,
        "a function of nothing": _Made(lambda: lambda parameters: None),
        "Adam without a number": partial(torch.optim.Adam, **{"lr": "0.1"}),
        "a negative rate": partial(torch.optim.Adam, lr=-1.0),
    },
    "scheduler": lambda: {
        "text": "cosine",
        "a number": 3,
        "Pyro's": pyro.optim.StepLR,  # pyright: ignore[reportAttributeAccessIssue]
        "an optimizer": torch.optim.SGD,
        "without its length": torch.optim.lr_scheduler.OneCycleLR,
        "a function of nothing": _Made(lambda: lambda optimizer: None),
    },
    "objective": lambda: {
        "text": "elbo",
        "a class": Trace_ELBO,
        "a number": 3,
        "one that gives None": _Gives(lambda loss: None),
        "one that gives a vector": _Gives(lambda loss: loss.expand(3)),
        "one that gives text": _Gives(lambda loss: "loss"),
        "one that gives a complex number": _Gives(lambda loss: loss + 0j),
    },
    "data": _bad_data,
    # which a guide may take
    "batch": lambda: {key: value for key, value in _bad_data().items() if key != "an infinity"},
    "data or None": lambda: _without_none(_bad_data()),
    "pair": _bad_pairs,
    "like": lambda: {key: _bad_data()[key] for key in ("text", "a number", "a NumPy array", "a masked array", "nothing", "a set", "complex numbers", "a sparse tensor")},
    "models": lambda: {"one pair": _pair(), "None": None, "empty": {}, "text": "vae", "a list": [_pair()], "of text": {"a": "vae"}},
    "tensor": lambda: {"None": None, "text": "z", "a number": 3.0, "a list": [[0.0, 1.0]], "a NumPy array": np.zeros((2, 2)), "NaN": torch.full((2, 2), math.nan)},
    "folder": lambda: {"NUL": "a\0b", "a number": 3, "a list": ["run"], "a file": __file__},
    "path": lambda: {"NUL": "a\0b.npy", "a number": 3, "a list": ["x.npy"], "no file": "nothing.npy", "a folder": str(Path(__file__).parent), "text of another "
        "kind": __file__, "None": None, "empty": ""},
    "sizes": lambda: {"a number": 3, "text": "16", "None": None, "0": (0,), "-1": (4, -1), "2.5": (2.5,), "of text": ("4",), "True": (True,)},
    "flag": lambda: {"text": "no", "None": None, "a number": 3},
}  # fmt: skip
_KINDS["side"] = _KINDS["count"]

# By kind, values of another type than Python's own, and the plain ones whose results they must
# give.
_INTEGERS = {"NumPy's int8": np.int8, "a tensor": torch.tensor}
_UNUSUAL: dict[str, dict[str, tuple[Any, Any]]] = {
    "count": {label: (make(2), 2) for label, make in _INTEGERS.items()},
    "count or None": {label: (make(2), 2) for label, make in _INTEGERS.items()},
    "seed": {label: (make(3), 3) for label, make in _INTEGERS.items()},
    "positive": {"NumPy's float32": (np.float32(1.5), 1.5)},
    "probability": {"a tensor": (torch.tensor(0.25), 0.25)},
}
_ALSO = {  # what else a message may call an argument of a kind
    "pair": ("latent variable model", "has no method", "torch.nn.Module"),
    "models": ("latent variable model", "has no method"),
    "data": ("data", "batch", "tensor"),
    "data or None": ("data", "batch", "tensor", "like"),
    "batch": ("data", "batch", "tensor"),
    "like": ("like", "data", "batch", "tensor"),
    "objective": ("loss", "_Gives"),
    "optimizer": ("Adam", "optimizer"),
    "scheduler": ("scheduler", "OneCycleLR"),
    "path": ("path", "file", "folder", "nothing.npy", "bad_inputs.py", "NUL"),
    "folder": ("folder", "run_dir"),
    "sizes": ("hidden", "channels"),
    "tensor": ("first", "ends", "tensor", "shape"),
}


def _same(found: Any, plain: Any) -> bool:
    """Whether two results are equal in all that is no clock."""
    first, second = (_numbers(value) for value in (found, plain))
    return first == second


def _numbers(value: Any) -> Any:
    """What is compared of a result: all numbers in it."""
    if isinstance(value, torch.Tensor):
        return (
            tuple(value.shape),
            value.detach().double().nan_to_num(nan=-1.5).flatten().tolist(),
        )
    if isinstance(value, np.ndarray):
        return (value.shape, np.nan_to_num(value.astype(float)).ravel().tolist())
    if isinstance(value, torch.nn.Module):
        return [_numbers(p) for p in value.state_dict().values()]
    if isinstance(value, Mapping):
        return {key: _numbers(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        clocks = {"seconds", "compile_seconds", "data_per_second", "chunk"}
        return {
            key: _numbers(getattr(value, key))
            for key in value.__dataclass_fields__
            if key not in clocks
        }
    if isinstance(value, bool | int | float | np.generic):
        return None if value != value else float(value)
    return type(value).__name__ if not isinstance(value, str) else value


# The calls
# ----------------------------------------------------------------------------------------------------------------


def _model(x: Any) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def _drawing(x: Any = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def _guide(x: Any) -> None:
    slope = pyro.param("slope", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.7).to_event(1))


def _pair() -> Any:
    return vilvm.Pair(_model, _guide)


def _shared_model(x: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean * torch.ones(2), 1.0).to_event(1), obs=x)


class _Gives:
    """An objective whose loss is what `change` makes of a right one."""

    def __init__(self, change: Callable[[Any], Any]):
        self.change = change

    def differentiable_loss(self, model: Any, guide: Any, *args: Any) -> Any:
        return self.change(Trace_ELBO().differentiable_loss(model, guide, *args))

    def loss(self, model: Any, guide: Any, *args: Any) -> Any:
        return Trace_ELBO().loss(model, guide, *args)


@cache
def _x(rows: int = 8) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))


def _with_pair(**right: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"lvm": _pair(), **right}


def _fitted(**options: Any) -> Any:
    fitted = vilvm.fit(**options)
    return (
        fitted.steps,
        [p.detach().clone() for p in options["lvm"].parameters()],
        fitted.history["elbo"],
    )


def _picture() -> vilvm.Data:
    return vilvm.Data(_x(), image_shape=(1, 2))


def _constant(lvm: Any, data: Any, **options: Any) -> Any:
    return diagnostics.gaps(lvm, data, evidence="iwae", steps=options.pop("steps", 2), **options)


def _calls() -> Iterator[_Call]:
    x = _x()
    yield _Call(
        "fit",
        _fitted,
        _with_pair(data=x, steps=2),
        {
            "lvm": "pair",
            "data": "data",
            "steps": "count",
            "batch_size": "count or None",
            "objective": "objective",
            "optimizer": "optimizer",
            "scheduler": "scheduler",
            "scheduler_interval": "choice",
            "clip": "positive or None",
            "nonfinite": "choice",
            "compile": "choice",
            "precision": "choice",
            "device": "choice of device",
            "seed": "seed",
            "run_dir": "folder",
            "resume": "flag",
            "checkpoint_seconds": "seconds",
            "callbacks": "functions",
            "arguments": "function",
            "after_step": "function",
            "validation": "data or None",
        },
    )
    yield _Call(
        "fit of epochs", _fitted, _with_pair(data=x, epochs=2, batch_size=4), {"epochs": "count"}
    )
    yield _Call(
        "fit with patience",
        _fitted,
        _with_pair(data=x, steps=2, validation=x),
        {"patience": "count or None"},
    )
    yield _Call(
        "evaluate",
        vilvm.evaluate,
        _with_pair(data=x, num_samples=3),
        {
            "lvm": "pair",
            "data": "data",
            "num_samples": "count",
            "batch_size": "count or None",
            "chunk": "count or None",
            "bounds": "choices",
            "compile": "choice",
            "precision": "choice",
            "seed": "seed",
        },
    )
    yield _Call(
        "compare",
        lambda **options: len(vilvm.compare(**options).rows),
        lambda: {
            "models": {"a": _pair(), "b": _pair()},
            "data": x,
            "num_samples": 3,
            "num_draws": 20,
            "progress": False,
        },
        {
            "models": "models",
            "data": "data",
            "num_samples": "count",
            "batch_size": "count or None",
            "num_draws": "at least 0",
            "seed": "seed",
        },
    )
    yield _Call(
        "log_weights",
        vilvm.log_weights,
        _with_pair(batch=x),
        {"lvm": "pair", "batch": "batch", "num_samples": "draws", "chunk": "count or None"},
    )
    for name in ("posterior", "posterior_mean", "resample"):
        yield _Call(
            name,
            getattr(vilvm, name),
            _with_pair(batch=x),
            {"lvm": "pair", "batch": "batch", "num_samples": "draws"},
        )
    yield _Call(
        "resample again",
        vilvm.resample,
        _with_pair(batch=x),
        {"proposals": "draws", "chunk": "count or None"},
    )
    yield _Call(
        "sample",
        vilvm.sample,
        _with_pair(num_samples=2, like=x),
        {"lvm": "pair", "num_samples": "draws", "like": "like"},
    )
    yield _Call(
        "predict",
        vilvm.predict,
        _with_pair(latents={"z": torch.zeros(2, 2)}),
        {"lvm": "pair", "latents": "latents"},
    )
    yield _Call(
        "simulate",
        lambda **options: len(vilvm.weights.simulate(**options)),
        _with_pair(num_simulations=2, like=x),
        {"lvm": "pair", "num_simulations": "count", "batch_size": "count", "rebuild": "function"},
    )
    yield from _of_diagnostics(x)
    yield from _of_evaluation(x)
    yield from _of_guides(x)
    yield from _of_data()
    yield from _of_reports()


def _of_diagnostics(x: torch.Tensor) -> Iterator[_Call]:
    right = _with_pair(data=x)
    yield _Call(
        "diagnose",
        lambda **options: vilvm.diagnose(**options).num_data,
        _with_pair(data=x, budget=0.01, progress=False),
        {
            "lvm": "pair",
            "data": "data",
            "budget": "positive",
            "num_data": "count",
            "false_alarm": "probability",
            "seed": "seed",
        },
    )
    yield _Call(
        "active_units",
        diagnostics.active_units,
        right,
        {
            "threshold": "probability",
            "num_samples": "count",
            "seed": "seed",
            "lvm": "pair",
            "data": "data",
        },
    )
    yield _Call(
        "collapse",
        lambda **options: diagnostics.collapse(**options).spread,
        right,
        {
            "num_samples": "at least 2",
            "num_data": "at least 2",
            "threshold": "probability",
            "seed": "seed",
            "lvm": "pair",
        },
    )
    tested = {"false_alarm": "probability", "budget": "seconds or None", "seed": "seed"}
    for name, options, more in (
        (
            "correction",
            {"num_samples": 1000},
            {"num_samples": "too few", "batch_size": "count or None"},
        ),
        ("loo", {"num_samples": 100}, {"num_samples": "too few"}),
        (
            "pareto_k",
            {"num_samples": 100},
            {"num_samples": "too few", "batch_size": "count or None", "compile": "choice"},
        ),
        (
            "predictive_check",
            {"num_draws": 100},
            {"num_draws": "too few", "batch_size": "count or None", "kind": "choice"},
        ),
        ("rates", {"num_samples": 10}, {"num_samples": "at least 2"}),
        (
            "gaps",
            {"num_samples": 2, "steps": 2, "evidence": "iwae"},
            {
                "num_samples": "count",
                "steps": "count",
                "batch_size": "count",
                "evidence": "choice or None",
            },
        ),
    ):
        kinds = {
            **{k: v for k, v in tested.items() if not (name == "loo" and k == "false_alarm")},
            **more,
            "lvm": "pair",
        }
        right = _with_pair(data=x, **options)
        if name == "loo":  # which is of a latent that the data share

            def right(options=options):
                return {
                    "lvm": vilvm.Pair(_shared_model, AutoNormal(_shared_model)),
                    "data": x,
                    **options,
                }

        yield _Call(name, getattr(diagnostics, name), right, kinds)
    yield _Call(
        "gradient_snr",
        diagnostics.gradient_snr,
        _with_pair(data=x, num_draws=40),
        {
            "num_draws": "too few",
            "batch_size": "count",
            "false_alarm": "probability",
            "seed": "seed",
            "lvm": "pair",
        },
    )
    for name in ("sbc", "tarp"):
        yield _Call(
            name,
            getattr(diagnostics, name),
            _with_pair(num_simulations=10, num_draws=9, like=x),
            {
                "num_simulations": "wrong counts",
                "num_draws": "wrong counts",
                "false_alarm": "probability",
                "seed": "seed",
                "batch_size": "count or None",
                "budget": "seconds or None",
                "rebuild": "function",
            },
        )
    yield _Call(
        "convergence",
        diagnostics.convergence,
        lambda: {"history": _history()},
        {
            "history": "no history",
            "tolerance": "positive",
            "false_alarm": "probability",
            "start": "start",
        },
    )
    yield _Call(
        "CollapseAlarm",
        lambda **options: bool(diagnostics.CollapseAlarm(**options)),
        dict,
        {
            "threshold": "positive",
            "patience": "at least 2",
            "after": "start",
            "num_data": "at least 2",
            "data": "data or None",
        },
    )
    yield _Call(
        "Converged",
        lambda **options: bool(diagnostics.Converged(**options)),
        dict,
        {
            "window": "too few",
            "rhat": "positive",
            "share": "share",
            "tolerance": "positive",
            "false_alarm": "probability",
            "start": "start",
            "seed": "seed",
        },
    )
    yield _Call(
        "psis",
        diagnostics.psis,
        lambda: {"log_weights": torch.linspace(0, 1, 100)},
        {"log_weights": "weights"},
    )


def _of_evaluation(x: torch.Tensor) -> Iterator[_Call]:
    short = evaluation.Schedule(num_chains=2, num_temperatures=2, leapfrog=1)
    yield _Call(
        "Schedule",
        evaluation.Schedule,
        dict,
        {
            "num_chains": "count",
            "num_temperatures": "count",
            "leapfrog": "count",
            "path": "choice",
            "base": "choice",
            "acceptance": "probability",
        },
    )
    yield _Call(
        "ais",
        evaluation.ais,
        _with_pair(data=x, schedule=short),
        {
            "lvm": "pair",
            "data": "data",
            "batch_size": "count or None",
            "seed": "seed",
            "schedule": "schedule",
            "compile": "choice",
        },
    )
    yield _Call(
        "bdmc",
        evaluation.bdmc,
        _with_pair(schedule=short, num_simulations=2, like=x),
        {
            "num_simulations": "count",
            "batch_size": "count or None",
            "seed": "seed",
            "schedule": "schedule",
        },
    )
    labelled = vilvm.Data(_x(40), labels=torch.arange(40) % 2)
    yield _Call(
        "fit_features",
        lambda **options: evaluation.fit_features(**options).layers,
        lambda: {"data": labelled, "hidden": (4,), "epochs": 1},
        {"data": "data", "hidden": "sizes", "epochs": "count", "seed": "seed"},
    )
    yield _Call(
        "frechet_distance",
        evaluation.frechet_distance,
        lambda: {"first": _x(30).numpy(), "second": _x(30).numpy()},
        {"first": "features", "second": "features"},
    )
    yield _Call(
        "psnr",
        evaluation.psnr,
        lambda: {"restored": x, "clean": x + 1},
        {"peak": "positive", "restored": "tensor"},
    )
    yield _Call(
        "reconstruct",
        evaluation.reconstruct,
        _with_pair(batch=x),
        {"lvm": "pair", "num_samples": "draws", "batch": "batch"},
    )
    yield _Call(
        "squared_error",
        evaluation.squared_error,
        _with_pair(data=x),
        {"lvm": "pair", "data": "data", "num_samples": "draws", "seed": "seed"},
    )
    yield _Call(
        "two_sample_test",
        evaluation.two_sample_test,
        lambda: {"data": _x(20), "draws": _x(20), "folds": 2},
        {"data": "tensor", "draws": "tensor", "folds": "folds", "seed": "seed"},
    )
    codes = {"first": torch.zeros(2, 2), "second": torch.ones(2, 2), "steps": 3}
    for function in (interpolation.line, interpolation.great_circle):
        yield _Call(
            function.__name__, function, lambda: codes, {"first": "tensor", "steps": "at least 2"}
        )
    yield _Call(
        "interpolate",
        interpolation.interpolate,
        _with_pair(**codes),
        {
            "lvm": "pair",
            "steps": "at least 2",
            "num_samples": "draws",
            "path": "function",
            "first": "tensor",
        },
    )
    yield _Call(
        "to_datatree",
        lambda **options: dict(export.to_datatree(**options).posterior.sizes),
        _with_pair(data=x, num_samples=3),
        {
            "lvm": "pair",
            "data": "data",
            "num_samples": "count",
            "num_predictive": "count or None",
            "batch_size": "count or None",
            "seed": "seed",
            "coords": "dict or None",
            "dims": "dict or None",
        },
    )


def _of_guides(x: torch.Tensor) -> Iterator[_Call]:
    yield _Call(
        "fit_guide",
        lambda **options: wrappers.fit_guide(**options)[0],
        _with_pair(data=x, epochs=1, hidden=(4,)),
        {
            "lvm": "pair",
            "data": "data",
            "epochs": "count",
            "batch_size": "count",
            "hidden": "sizes",
            "lr": "positive",
            "seed": "seed",
            "encoder": "network",
        },
    )
    yield _Call(
        "fit_local_guide",
        lambda **options: guides.fit_local_guide(**options)[0],
        _with_pair(batch=x, steps=2),
        {
            "lvm": "pair",
            "batch": "batch",
            "steps": "count",
            "lr": "positive",
            "num_particles": "count",
            "seed": "seed",
        },
    )
    yield _Call(
        "with_guide",
        wrappers.with_guide,
        _with_pair(encoder=torch.nn.Linear(2, 4)),
        {"lvm": "pair", "encoder": "network"},
    )
    yield _Call("with_prior_guide", wrappers.with_prior_guide, _with_pair(), {"lvm": "pair"})
    yield _Call(
        "fit_prior",
        priors.fit_prior,
        _with_pair(data=x, kind="full"),
        {
            "lvm": "pair",
            "data": "data",
            "kind": "choice",
            "seed": "seed",
            "components": "count",
            "steps": "count",
            "batch_size": "count",
        },
    )
    yield _Call(
        "with_prior",
        wrappers.with_prior,
        lambda: {"lvm": _pair(), "prior": priors.fit_prior(_pair(), x)},
        {"lvm": "pair", "prior": "network"},
    )
    yield _Call(
        "flat_prior",
        lambda **options: guides.flat_prior(**options).event_shape,
        lambda: {"latent_dim": 2},
        {"latent_dim": "count"},
    )
    yield _Call(
        "fit_likelihood_scale",
        lambda **options: wrappers.fit_likelihood_scale(**options),
        _with_pair(data=x),
        {"lvm": "pair", "data": "data", "num_samples": "count", "seed": "seed"},
    )
    yield _Call(
        "partly_observed",
        partly_observed,
        _with_pair(observed=torch.tensor([True, False])),
        {"lvm": "pair", "observed": "tensor"},
    )
    yield _Call(
        "Annealed",
        lambda **options: objectives.Annealed(**options).weight,
        lambda: {"objective": Trace_ELBO(), "warmup": 3},
        {"objective": "no ELBO", "warmup": "count", "start": "start of annealing"},
    )
    yield _Call(
        "one_cycle",
        lambda **options: bool(training.one_cycle(**options)),
        lambda: {"lr": 0.1, "steps": 25},
        {"lr": "positive", "steps": "count"},
    )
    yield _Call(
        "by_name",
        lambda optimizer, options: _fitted(
            lvm=_pair(), data=x, steps=1, optimizer=training.by_name(optimizer, options)
        ),
        lambda: {"optimizer": torch.optim.Adam, "options": lambda name: {}},
        {"optimizer": "function", "options": "function"},
    )
    yield _Call(
        "mlp",
        lambda **options: len(networks.mlp(**options)),
        lambda: {"in_dim": 2, "hidden": (3,), "out_dim": 2},
        {"in_dim": "count", "hidden": "sizes", "out_dim": "count"},
    )
    yield _Call(
        "ConvEncoder",
        lambda **options: len(networks.ConvEncoder(**options).stages),
        lambda: {"side": 8, "out_dim": 2, "channels": (2,)},
        {"side": "side", "out_dim": "count", "channels": "sizes", "in_channels": "count"},
    )
    yield _Call(
        "ConvDecoder",
        lambda **options: len(networks.ConvDecoder(**options).stages),
        lambda: {"side": 8, "in_dim": 2, "channels": (2,)},
        {"side": "side", "in_dim": "count", "channels": "sizes", "out_channels": "count"},
    )
    yield _Call(
        "start_at_mean",
        networks.start_at_mean,
        lambda: {"layer": torch.nn.Linear(2, 2), "mean": torch.zeros(2), "likelihood": "gaussian"},
        {"likelihood": "choice", "layer": "network", "mean": "tensor"},
    )
    yield _Call(
        "Pair",
        vilvm.Pair,
        lambda: {"model": _model, "guide": _guide},
        {"model": "function", "guide": "function"},
    )


def _of_data() -> Iterator[_Call]:
    yield _Call(
        "arrays",
        lambda **options: datasets.arrays(**options).train.x,
        lambda: {"train": _x(40)},
        {
            "train": "array or path",
            "validation": "split or None",
            "seed": "seed",
            "transform": "transform",
        },
    )
    yield _Call(
        "digits",
        lambda **options: datasets.digits(**options).validation.x,
        dict,
        {"validation": "split", "seed": "seed", "transform": "transform"},
    )
    yield _Call(
        "carve",
        lambda **options: datasets.carve(**options)[0].x,
        lambda: {"train": vilvm.Data(_x()), "validation": 2, "seed": 0},
        {"validation": "split", "seed": "seed", "train": "no Data"},
    )
    yield _Call(
        "two_modes",
        lambda **options: datasets.two_modes(**options).train.x,
        lambda: {"num_train": 3, "num_test": 3},
        {"num_train": "count", "num_test": "count", "seed": "seed"},
    )
    yield _Call("on_disk", datasets.on_disk, dict, {"source": "path"})
    yield _Call(
        "posteriordb",
        datasets.posteriordb,
        lambda: {"name": "nothing", "folder": "nowhere"},
        {"name": "name of a posterior", "folder": "folder"},
    )
    yield _Call("Data", vilvm.Data, lambda: {"x": _x()}, {"transform": "transform"})
    yield _Call("GaussianNoise", data.GaussianNoise, dict, {"scale": "positive"})
    yield _Call("PixelErasure", data.PixelErasure, dict, {"share": "share"})
    yield _Call("BlockMasking", data.BlockMasking, dict, {"size": "count", "image_shape": "sizes"})
    yield _Call("HalfErasure", data.HalfErasure, dict, {"half": "choice", "image_shape": "sizes"})
    yield _Call("Blur", data.Blur, dict, {"scale": "positive", "image_shape": "sizes"})
    yield _Call(
        "StaticBinarisation",
        lambda seed: data.StaticBinarisation(seed)(torch.full((3,), 0.5)),
        dict,
        {"seed": "seed"},
    )
    yield _Call("Chain", data.Chain, dict, {"parts": "transforms"})
    yield _Call("Corrupted", data.Corrupted, dict, {"corruption": "choice"})
    yield _Call("load", export.load, dict, {"path": "path"})


def _of_reports() -> Iterator[_Call]:
    right = lambda: {"lvm": _pair(), "data": _picture()}  # noqa: E731
    counted = {
        "reconstructions": "count",
        "latent_scatter": "count",
        "prior_samples": "count",
        "interpolations": "pairs",
        "manifold": "side",
    }
    for name, argument in counted.items():
        yield _Call(
            f"plots.{name}",
            partial(_made, name),
            right,
            {argument: "count", "lvm": "pair"},
        )
    yield _Call(
        "plots.interpolations by steps",
        lambda **options: bool(plots.interpolations(**options)),
        right,
        {"steps": "at least 2"},
    )
    yield _Call(
        "plots.rank_histograms",
        lambda **options: bool(plots.rank_histograms(**options)),
        lambda: {"ranks": torch.arange(10), "num_draws": 9},
        {"num_draws": "wrong counts", "bins": "count or None"},
    )
    yield _Call(
        "plots.rank_ecdf",
        lambda **options: bool(plots.rank_ecdf(**options)),
        lambda: {"ranks": torch.arange(10), "num_draws": 9},
        {"num_draws": "wrong counts", "false_alarm": "probability"},
    )


def _history() -> Any:
    records = [
        training.Record(
            i, i, -1.0 + 0.001 * (i % 3), math.nan, math.nan, 1.0, 1.0, 0.1, 1.0, 0, 1.0, 1.0
        )
        for i in range(1, 60)
    ]
    return vilvm.History(records)


_OTHER_KINDS: dict[str, dict[str, Any]] = {
    "choice of device": {"a typing error": "gpu", "3.5": 3.5, "a list": ["cpu"], "empty": ""},
    "choices": {"a typing error": ["elbow"], "one word": "elbow", "a number": 3, "numbers": [3], "nothing": []},
    "choice or None": {"a typing error": "elbow", "3": 3, "a list": ["iwae"], "a dict": {}},
    "at least 0": {**_without_none(_NO_NUMBERS), "-1": -1, "2.5": 2.5},
    "at least 2": {**_BAD_COUNTS, "1": 1},
    "folds": {**_BAD_COUNTS, "1": 1, "more than data": 50},
    "too few": {**_without_none(_BAD_COUNTS), "1": 1},
    "wrong counts": _BAD_COUNTS,
    "start": {**_without_none(_NO_NUMBERS), "-1": -1, "2.5": 2.5},
    "start of annealing": {**_NO_NUMBERS, "-0.1": -0.1, "1.5": 1.5},
    "share": {**_NO_NUMBERS, "0": 0.0, "-0.1": -0.1, "1.5": 1.5},
    "latents": {"None": None, "a tensor": torch.zeros(2, 2), "empty": {}, "text": "z", "of text": {"z": "0"}, "another": {"w": torch.zeros(2, 2)}, "a list": [torch.zeros(2, 2)], "of NumPy": {"z": np.zeros((2, 2))}},
    "weights": {"None": None, "text": "w", "a NumPy array": np.zeros(100), "NaN": torch.full((100,), math.nan), "infinity": torch.full((100,), math.inf), "nothing": torch.zeros(0), "complex": torch.zeros(100) + 0j},
    "no history": {"None": None, "text": "h", "a number": 3, "a list": [1.0, 2.0], "an array": np.zeros(30), "a dict": {}},
    "transforms": {"text": "binarise", "a number": 3, "None": None, "nothing": (), "a list": [data.DynamicBinarisation()], "of text": ("a",)},
    "schedule": {"text": "ais", "a number": 3, "a dict": {}},
    "features": {"None": None, "text": "f", "a vector": np.zeros(30), "NaN": np.full((30, 2), math.nan), "another width": np.zeros((30, 3)), "one row": np.zeros((1, 2)), "a number": 3.0},
    "dict or None": {"text": "z", "a number": 3, "an unknown name": {"unheard": ["a"]}, "a list": ["z"]},
    "network": {"text": "mlp", "a number": 3, "a function": print, "a class": torch.nn.Linear},
    "no ELBO": {"text": "elbo", "a class": Trace_ELBO, "None": None, "a number": 3, "a network": torch.nn.Linear(1, 1)},
    "array or path": {"None": None, "text": "nothing.npy", "a table": "table.csv", "a number": 3, "words": np.array([["a"], ["b"]]), "one number": np.array(3.0), "ragged": [[1.0], [1.0, 2.0]], "NaN": np.full((30, 2), math.nan), "complex": np.zeros((30, 2)) + 0j, "nothing": np.zeros((0, 2)), "one row": np.zeros((1, 2)), "dates": np.zeros(30, dtype="datetime64[s]"), "objects": np.array([object()] * 30), "masked": np.ma.masked_array(np.zeros((30, 2)), np.eye(30, 2) > 0), "NUL": "a\0b.npy", "a folder": str(Path(__file__).parent)},
    "split": {**_BAD_COUNTS, "all": 10**6},
    "split or None": {**_without_none(_BAD_COUNTS), "all": 10**6},
    "transform": {"text": "binarise", "a number": 3, "a class": data.DynamicBinarisation, "a function": abs},
    "no Data": {"None": None, "a tensor": torch.zeros(8, 2), "text": "x"},
    "name of a posterior": {"another": "nothing-at-all", "a number": 3, "None": None, "NUL": "a\0b"},
}  # fmt: skip
_KINDS |= {kind: partial(dict, values) for kind, values in _OTHER_KINDS.items()}
_KINDS["draws"] = _KINDS["count"]
for _kind in ("draws", "wrong counts"):
    _UNUSUAL[_kind] = {label: (make(9), 9) for label, make in _INTEGERS.items()}
for _kind in ("split", "split or None", "at least 2", "folds", "at least 0", "start"):
    _UNUSUAL[_kind] = {label: (make(2), 2) for label, make in _INTEGERS.items()}
_UNUSUAL["side"] = {label: (make(8), 8) for label, make in _INTEGERS.items()}
_UNUSUAL["sizes"] = {}
_ALSO |= {
    "no Data": ("carve",),
    "split": ("validation",),
    "array or path": ("arrays", "data", "nothing.npy", "table.csv", "folder", "NUL", "file"),
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


# What is wrong otherwise
# -----------------------------------------------------------------------------------------------------


def _others() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Models and files."""
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
        yield f"posteriordb({name})", partial(_read_posterior, content, None)
    for name, draws in _DRAWS_FILES.items():
        yield f"posteriordb(draws that are {name})", partial(_read_posterior, None, draws)
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

    with _quiet():
        lvm: Any = vilvm.Pair(model, guide)
        return vilvm.fit(lvm, _x(data), steps=1, batch_size=batch).steps


def _within_no_grad() -> bool:
    with torch.no_grad():
        within = _fitted(lvm=_pair(), data=_x(), steps=2)
    return _same(within, _fitted(lvm=_pair(), data=_x(), steps=2))


def _one_by_one() -> bool:
    found = _fitted(
        lvm=_pair(), data=_x(), steps=2, objective=_Gives(lambda loss: loss.reshape(1, 1))
    )
    return _same(found, _fitted(lvm=_pair(), data=_x(), steps=2))


def _two_names() -> Any:
    def guide(x: Any) -> None:
        slope = pyro.param("a.b", torch.tensor(0.4)) + pyro.param("a/b", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.7).to_event(1))

    lvm: Any = vilvm.Pair(_model, guide)
    vilvm.log_weights(lvm, _x())
    return len(list(lvm.parameters())) == 2


def _npy(shape: str, numbers: bytes, kind: str = "<f4") -> bytes:
    """An .npy file whose header says `shape`."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
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
}  # fmt: skip
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
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "x.npy")
        path.write_bytes(content)
        return (
            datasets.arrays(path)
            if reader == "arrays"
            else datasets.on_disk(path).subset(slice(0, 5)).x
        )


def _read_posterior(data: str | None, draws: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        Path(folder, "a-b.data.json").write_text('{"y": [1.0, 2.0]}' if data is None else data)
        np.savez(Path(folder, "a-b.draws.npz"), mu=np.zeros((2, 5)) if draws is None else draws)
        return datasets.posteriordb("a-b", folder)


def _too_large_for_bytes() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        np.save(path, np.full((10, 2), 300))
        return datasets.on_disk(path, dtype=torch.uint8).subset(slice(0, 5)).x


def _made(name: str, **options: Any) -> bool:
    return bool(getattr(plots, name)(**options))
