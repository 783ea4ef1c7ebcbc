"""Some 2,500 calls with one wrong argument, or one right argument of an unusual type.

``cases()`` yields a name and a function that makes the call; ``verdict`` classifies the outcome:

    "one sentence"  the call raised an error of vilvm: one line that names the argument
    "right"         the result equals that of the plain type (NumPy's 3 for 3)
    "internals"     the call raised another error, or a message with words of Pyro, torch or Python
    "accepted"      the call returned although the argument was wrong

``_calls`` lists every public function of vilvm with right arguments. Each argument has a kind, and
``KINDS`` lists the bad values of each kind.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import vilvm
import vilvm.weights
from benchmarks.faults.bad_files import other_cases
from benchmarks.faults.bad_pairs import (
    fitted,
    guide,
    model,
    pair,
    quiet,
    rows_of_data,
    same,
    shared_model,
)
from benchmarks.faults.bad_values import KINDS, OTHER_NAMES, UNUSUAL, Made
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
    r"Trace Shapes|_pyro_|param_state|Traceback|site-packages|torch\._|aten::|INTERNAL ASSERT|"
    r"0x[0-9a-f]{8}|has no attribute|unsupported operand|not supported between|object is not|"
    r"positional argument|unexpected keyword|must be (real|tuple|Tensor)|argument of type|"
    r"cannot be interpreted|invalid combination|could not convert|Expected |expected "
)
_MAX_LENGTH = 600  # characters of a message


def verdict(outcome: Any) -> str:
    """The class of an outcome (an error or a result); see the module."""
    if outcome is True:
        return "right"
    if not isinstance(outcome, BaseException):
        return "accepted"
    text = _message(outcome)
    if not isinstance(outcome, _KNOWN) or not _is_sentence(text):
        return "internals"
    names = getattr(outcome, "named", ())
    if names and not any(name in text for name in names):
        return "internals"
    return "one sentence"


def _message(error: BaseException) -> str:
    """The message of an error without words of torch or of the user's own functions."""
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    text = re.sub(
        r"( fails on a batch of .* \(in \w+, bad_\w+.py:\d+\)): .*", r"\1", text
    )
    return re.sub(r"(could not be made).*", r"\1", text)


def _is_sentence(text: str) -> bool:
    one_line = "\n" not in text and 0 < len(text) <= _MAX_LENGTH
    return one_line and not _INTERNALS.search(text)


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every case: its name, and the function that makes its call."""
    for call in _calls():
        for argument, kind in call.kinds.items():
            for label, value in KINDS[kind]().items():
                yield (
                    f"{call.name}({argument}={label})",
                    _Case(call, argument, kind, value),
                )
            for label, (value, plain) in UNUSUAL.get(kind, {}).items():
                yield (
                    f"{call.name}({argument}={label})",
                    _Case(call, argument, kind, value, plain),
                )
    yield from other_cases()


@dataclass(frozen=True)
class _Call:
    """A public function, right arguments, and the kinds of the arguments that are varied."""

    name: str
    function: Callable[..., Any]
    right: Callable[[], dict[str, Any]]
    kinds: Mapping[str, str]

    def __call__(self, **changed: Any) -> Any:
        return self.function(**{**self.right(), **changed})


@dataclass(frozen=True)
class _Case:
    """A call with one changed argument; with `plain`, compared with the call on that value."""

    call: _Call
    argument: str
    kind: str
    value: Any
    plain: Any = None

    def __call__(self) -> Any:
        given = self.value
        if isinstance(given, Made):
            given = given()
        try:
            with quiet():
                found = self._made(given)
                if self.plain is None:
                    return found
                return same(found, self._made(self.plain))
        except Exception as error:
            names = (self.argument, *OTHER_NAMES.get(self.kind, ()))
            error.named = names  # type: ignore[attr-defined]
            raise

    def _made(self, value: Any) -> Any:
        torch.manual_seed(0)
        return self.call(**{self.argument: value})


def _with_pair(**right: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"lvm": pair(), **right}


def _with_shared_latent(**right: Any) -> dict[str, Any]:
    return {"lvm": vilvm.Pair(shared_model, AutoNormal(shared_model)), **right}


def _picture() -> vilvm.Data:
    return vilvm.Data(rows_of_data(), image_shape=(1, 2))


def _calls() -> Iterator[_Call]:
    x = rows_of_data()
    yield _Call(
        "fit",
        fitted,
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
        "fit of epochs",
        fitted,
        _with_pair(data=x, epochs=2, batch_size=4),
        {"epochs": "count"},
    )
    yield _Call(
        "fit with patience",
        fitted,
        _with_pair(data=x, steps=2, validation=x),
        {"patience": "count or None", "validate_every": "positive or None"},
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
            "models": {"a": pair(), "b": pair()},
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
        {
            "lvm": "pair",
            "batch": "batch",
            "num_samples": "draws",
            "chunk": "count or None",
        },
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
        {
            "lvm": "pair",
            "num_simulations": "count",
            "batch_size": "count",
            "rebuild": "function",
        },
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
            {
                "num_samples": "too few",
                "batch_size": "count or None",
                "compile": "choice",
            },
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
            **{
                k: v
                for k, v in tested.items()
                if not (name == "loo" and k == "false_alarm")
            },
            **more,
            "lvm": "pair",
        }
        right = _with_pair(data=x, **options)
        if name == "loo":  # needs a latent that the data share
            right = partial(_with_shared_latent, data=x, **options)

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
            "window": "at least 2",
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
    labelled = vilvm.Data(rows_of_data(40), labels=torch.arange(40) % 2)
    yield _Call(
        "fit_features",
        lambda **options: evaluation.fit_features(**options).layers,
        lambda: {"data": labelled, "hidden": (4,), "epochs": 1},
        {"data": "data", "hidden": "sizes", "epochs": "count", "seed": "seed"},
    )
    yield _Call(
        "frechet_distance",
        evaluation.frechet_distance,
        lambda: {"first": rows_of_data(30).numpy(), "second": rows_of_data(30).numpy()},
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
        lambda: {"data": rows_of_data(20), "draws": rows_of_data(20), "folds": 2},
        {"data": "tensor", "draws": "tensor", "folds": "folds", "seed": "seed"},
    )
    codes = {"first": torch.zeros(2, 2), "second": torch.ones(2, 2), "steps": 3}
    for function in (interpolation.line, interpolation.great_circle):
        yield _Call(
            function.__name__,
            function,
            lambda: codes,
            {"first": "tensor", "steps": "at least 2"},
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
            "coords": "coordinates",
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
    yield _Call(
        "with_prior_guide", wrappers.with_prior_guide, _with_pair(), {"lvm": "pair"}
    )
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
        lambda: {"lvm": pair(), "prior": priors.fit_prior(pair(), x)},
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
        {"lvm": "pair", "observed": "tensor or None"},
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
        lambda optimizer, options: fitted(
            lvm=pair(), data=x, steps=1, optimizer=training.by_name(optimizer, options)
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
        {
            "side": "side",
            "out_dim": "count",
            "channels": "sizes",
            "in_channels": "count",
        },
    )
    yield _Call(
        "ConvDecoder",
        lambda **options: len(networks.ConvDecoder(**options).stages),
        lambda: {"side": 8, "in_dim": 2, "channels": (2,)},
        {
            "side": "side",
            "in_dim": "count",
            "channels": "sizes",
            "out_channels": "count",
        },
    )
    yield _Call(
        "start_at_mean",
        networks.start_at_mean,
        lambda: {
            "layer": torch.nn.Linear(2, 2),
            "mean": torch.zeros(2),
            "likelihood": "gaussian",
        },
        {"likelihood": "choice", "layer": "network", "mean": "tensor"},
    )
    yield _Call(
        "Pair",
        vilvm.Pair,
        lambda: {"model": model, "guide": guide},
        {"model": "function", "guide": "function"},
    )


def _of_data() -> Iterator[_Call]:
    yield _Call(
        "arrays",
        lambda **options: datasets.arrays(**options).train.x,
        lambda: {"train": rows_of_data(40)},
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
        lambda: {"train": vilvm.Data(rows_of_data()), "validation": 2, "seed": 0},
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
    yield _Call(
        "Data", vilvm.Data, lambda: {"x": rows_of_data()}, {"transform": "transform"}
    )
    yield _Call("GaussianNoise", data.GaussianNoise, dict, {"scale": "positive"})
    yield _Call("PixelErasure", data.PixelErasure, dict, {"share": "share"})
    yield _Call(
        "BlockMasking",
        data.BlockMasking,
        dict,
        {"size": "count", "image_shape": "sizes"},
    )
    yield _Call(
        "HalfErasure",
        data.HalfErasure,
        dict,
        {"half": "choice", "image_shape": "sizes"},
    )
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
    right = _with_pair(data=_picture())
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
            i,
            i,
            -1.0 + 0.001 * (i % 3),
            math.nan,
            math.nan,
            1.0,
            1.0,
            0.1,
            1.0,
            0,
            1.0,
            1.0,
        )
        for i in range(1, 60)
    ]
    return vilvm.History(records)


def _made(name: str, **options: Any) -> bool:
    return bool(getattr(plots, name)(**options))
