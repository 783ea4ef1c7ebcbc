"""The ledger: models side by side on the same data, and no ranking of what cannot be compared.

Two bounds can be ranked if they are of the same data under the same transform, of the same kind
with as many samples, and of densities of the same family of x: a density of grey levels and a
probability of bits have no common unit, and an importance-weighted bound of 5,000 samples is not
one of 50. A row carries all that as its protocol; rows of equal protocols stand in one group,
within which

    difference to the best = mean over data of (bound of the best − bound of the row),    with a paired standard error,

the standard deviation of the differences datum by datum over √N, which is far smaller than that of
either bound where the same data are hard for both. Monte Carlo error is in it.

A bound is a bound: a row may stand behind another because its model is worse, or because its guide
is. A small effective sample size (ESS) says the latter may be.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed, optional
from vilvm._runtime.files import write_atomic
from vilvm._runtime.random import seeded
from vilvm.data.data import Data, as_data
from vilvm.evaluation.evaluate import Evaluation, evaluate
from vilvm.evaluation.ledger_rows import Difference, Protocol, Row, check_comparable, difference
from vilvm.evaluation.ledger_tables import markdown, record, rich_tables
from vilvm.evaluation.reconstruction import squared_error
from vilvm.evaluation.two_sample import Features, frechet_distance, two_sample_test
from vilvm.lvm import ContractError, LatentVariableModel, device_of, evaluation_mode
from vilvm.weights import Layout, find_layout, log_weights, sample

__all__ = ["Ledger", "compare"]

_FEWEST = 5  # draws: one for each fold of the two-sample test


class Ledger:
    """Rows, in groups that may be ranked. Prints as a table with rich; ledgers of different data
    are put together with ``+``.

    Arguments:
        rows: of different names.

    Raises:
        ValueError: a name appears twice.
    """

    def __init__(self, rows: tuple[Row, ...]):
        names = [row.name for row in rows]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(
                f"Ledger: {double[0]!r} appears twice; every row needs a name of its own."
            )
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return self.to_markdown()

    def __getitem__(self, name: str) -> Row:
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise KeyError(f"No row {name!r}; there are {[row.name for row in self.rows]}.")
        return found[0]

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(self.rows + other.rows)

    def groups(self) -> dict[Protocol, list[Row]]:
        """The rows by protocol, in each group the best first (by bound, or by distortion where
        there is none).
        """
        groups: dict[Protocol, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.protocol, []).append(row)
        for rows in groups.values():
            rows.sort(
                key=lambda row: (
                    row.evaluation.distortion.mean if row.bound is None else -row.bound.mean
                )
            )
        return groups

    def difference(self, first: str, second: str) -> Difference:
        """By how much the bound of `first` is above that of `second`, on the same data.

        Raises:
            ValueError: they cannot be compared; says why.
        """
        a, b = self[first], self[second]
        check_comparable(a, b)
        assert a.bound is not None
        assert b.bound is not None
        return difference(a.bound, b.bound)

    def rank(self, protocol: Protocol | None = None) -> list[str]:
        """Names, the best first: of all rows, or of those with this protocol.

        Raises:
            ValueError: the rows cannot be compared; says which, and why.
        """
        rows = [row for row in self.rows if protocol in (None, row.protocol)]
        for row in rows[1:] or rows:
            check_comparable(rows[0], row)
        return [row.name for row in Ledger(tuple(rows)).groups()[rows[0].protocol]] if rows else []

    @property
    def notes(self) -> list[str]:
        """Why something is missing, row by row."""
        return [f"{row.name}: {note}" for row in self.rows for note in row.notes]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, a row a model, group by group: numbers, their standard errors, and
        the protocol.
        """
        import pandas  # here, for it takes a second to import

        records = [
            {"group": number, **record(row, rows[0])}
            for number, rows in enumerate(self.groups().values(), start=1)
            for row in rows
        ]
        return pandas.DataFrame(records)

    def to_csv(self, path: Path | str) -> None:
        """Writes the DataFrame as CSV, atomically."""
        text = io.StringIO()
        self.to_dataframe().to_csv(text, index=False)
        write_atomic(Path(path), text.getvalue())

    def to_markdown(self) -> str:
        """A table a group, under its protocol, in Markdown."""
        return (
            "\n\n".join(markdown(protocol, rows) for protocol, rows in self.groups().items())
            + "\n"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        groups = self.groups()
        for protocol, rows in groups.items():
            yield from rich_tables(protocol, rows, options.max_width)
        if len(groups) > 1:
            yield (
                "Rows of different groups cannot be ranked against each other: their protocols "
                "differ."
            )


def compare(
    models: Mapping[str, LatentVariableModel],
    data: Any,
    *,
    num_samples: int = 5000,
    batch_size: int | None = None,
    held_out: Any = None,
    num_draws: int = 1000,
    features: Features | None = None,
    seconds: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Ledger:
    """Evaluates models on the same data, and puts them side by side.

    Arguments:
        models: by name; each is left as it is.
        data: the data of the bounds: ``Data``, a tensor, or a tuple or dict of tensors with one
            datum a row.
        num_samples: Monte Carlo samples a datum.
        batch_size: data a pass, as for ``evaluate``.
        held_out: data that draws are compared with; by default those of the bounds.
        num_draws: draws and held-out data of the two-sample test and the Fréchet distance; 0 for
            neither.
        features: of the Fréchet distance (``fit_features``); none without.
        seconds: to train, by name, if the table is to say so.
        seed: of samples, transform, draws and classifier.
        progress: whether to show progress bars; by default on a terminal only.

    Returns:
        Ledger.

    Raises:
        ValueError: no model; or seconds of a model that is not there.
        ContractError: a model cannot be run on these data; says which.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.evaluation import compare
        >>> x = torch.randn(60, 4)
        >>> ledger = compare({"one": PPCA(4, 1).maximise(x), "two": PPCA(4, 2).maximise(x)}, x, num_samples=50, num_draws=20)
        >>> ledger.rank()
        ['two', 'one']
    """
    seed = check_seed("compare: seed", seed)
    num_samples = check_number("compare: num_samples", num_samples)
    batch_size = optional(check_number, "compare: batch_size", batch_size)
    if not isinstance(models, Mapping):
        raise ValueError(
            f"compare: models must be a dict, name: model; got a {type(models).__name__}."
        )
    if not models:
        raise ValueError("compare: no models; give them as {name: model}.")
    num_draws = check_number("compare: num_draws", num_draws, least=0)
    unknown = sorted(set(seconds or {}) - set(models))
    if unknown:
        raise ValueError(
            f"compare: seconds of {unknown[0]!r} are given, and the models are {sorted(models)}."
        )
    fixed = as_data(data).fixed(seed)
    contents = fixed.fingerprint()[:12]
    real = _held_out(
        fixed if held_out is None else as_data(held_out, "held-out data").fixed(seed),
        num_draws,
        seed,
    )
    ledger = Ledger(())
    for name, lvm in models.items():
        here = fixed.to(device_of(lvm, fixed.device))
        try:
            # Its own seed for each, so that no row depends on which others there are.
            with seeded(seed, here.device):
                evaluation = evaluate(
                    lvm,
                    here,
                    num_samples=num_samples,
                    batch_size=batch_size,
                    seed=seed,
                    progress=progress,
                )
                batch = (here.subset(slice(0, batch_size or 2)) if here.divisible else here).x
                layout = find_layout(lvm, batch)
                row = Row(
                    name=name,
                    protocol=_protocol(evaluation, contents),
                    evaluation=evaluation,
                    parameters=_parameters(lvm, batch, layout),
                    seconds=None if seconds is None else seconds.get(name),
                    notes=(evaluation.bounds.refusal,) if evaluation.bounds.refusal else (),
                )
                row = _with_squared_error(row, lvm, here)
                row = _with_quality(row, lvm, layout, num_draws, real, features, seed)
        except ContractError as error:
            raise ContractError(f"compare: {name}: {error}") from None
        ledger += Ledger((row,))
    return ledger


def _protocol(evaluation: Evaluation, contents: str) -> Protocol:
    said = evaluation.protocol
    bound = "none" if evaluation.bounds.refusal else "iwae"
    likelihood = ", ".join(
        f"{site} ~ {family}" for site, family in sorted(said["likelihood"].items())
    )
    fields = {
        name: said[name]
        for name in ("data", "split", "num_data", "transform", "num_samples", "unit")
    }
    return Protocol(likelihood=likelihood, contents=contents, bound=bound, **fields)


def _parameters(lvm: LatentVariableModel, batch: Any, layout: Layout) -> int:
    """How many numbers the pair's log-weights depend on: an encoder that a new guide has put out
    of use is not counted.
    """
    if not isinstance(lvm, torch.nn.Module):
        return 0
    parameters = [p for p in lvm.parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad(), evaluation_mode(lvm):
            total = log_weights(lvm, batch, 1, layout=layout).log_weight.sum()
        used = (
            torch.autograd.grad(total, parameters, allow_unused=True)
            if total.requires_grad
            else []
        )
    finally:
        for p, trainable in zip(parameters, before, strict=True):
            p.requires_grad_(trainable)
    return sum(p.numel() for p, grad in zip(parameters, used, strict=False) if grad is not None)


def _with_squared_error(row: Row, lvm: LatentVariableModel, data: Data) -> Row:
    try:
        return replace(row, sse=squared_error(lvm, data))
    except ContractError as error:
        return _noted(row, f"no reconstruction: {error}")


def _held_out(fixed: Data, count: int, seed: int) -> Tensor | None:
    """As many held-out data as there are draws, at random, if they are of one tensor and draws are
    wanted.
    """
    if not count or not isinstance(fixed.x, Tensor):
        return None
    order = torch.randperm(len(fixed), generator=torch.Generator().manual_seed(seed))
    return fixed.x.cpu()[order[:count]]


def _with_quality(
    row: Row,
    lvm: LatentVariableModel,
    layout: Layout,
    count: int,
    real: Tensor | None,
    features: Features | None,
    seed: int,
) -> Row:
    """The row with what draws from the model's prior look like beside held-out data, or with a
    note that says why not.
    """
    if not count:
        return row
    if real is None or len(real) < _FEWEST or count < _FEWEST:
        return _noted(
            row,
            f"no two-sample test: it needs {_FEWEST} draws and as many held-out data, of one "
            "tensor.",
        )
    try:
        drawn = [
            value.cpu() for name, value in sample(lvm, count).items() if name in layout.observed
        ]
    except ContractError as error:
        return _noted(row, f"no draws: {error}")
    if len(drawn) != 1 or drawn[0].shape[1:] != real.shape[1:]:
        return _noted(
            row,
            f"no draws: {[tuple(d.shape[1:]) for d in drawn]} is not the shape of a datum, "
            f"{tuple(real.shape[1:])}.",
        )
    if not bool(torch.isfinite(drawn[0]).all()):
        return _noted(row, "no two-sample test: some draws are not finite.")
    row = replace(row, two_sample=two_sample_test(real, drawn[0], seed=seed))
    if features is None:
        return row
    return replace(row, frechet=frechet_distance(features(real), features(drawn[0][: len(real)])))


def _noted(row: Row, note: str) -> Row:
    return replace(row, notes=(*row.notes, note))
