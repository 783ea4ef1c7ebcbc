"""The ledger: models side by side on the same data, ranked only where they are comparable.

Two bounds are comparable if they are of the same data under the same transform, of the same kind
with as many samples, and of the same family of densities of x: a density of grey levels and a
probability of bits have no common unit, and an importance-weighted bound of 5,000 samples differs
from one of 50. The protocol of a row records all this. Rows of equal protocols form a group, in
which

    difference to the best = mean over data of (bound of the best − bound of the row)

with a paired standard error, the standard deviation of the differences over √N. It is far smaller
than the standard error of either bound if the same data are hard for both. It includes Monte Carlo
error.

A row may have a lower bound because its model is worse, or because its guide is. A small effective
sample size (ESS) indicates the guide.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed, optional
from vilvm._runtime.files import write_atomic
from vilvm._runtime.random import seeded
from vilvm._runtime.results import Result, Table, frame_of, plots
from vilvm.data.data import Data
from vilvm.evaluation.ais import ais as annealed
from vilvm.evaluation.estimates import FEW, Evaluation
from vilvm.evaluation.evaluate import evaluate
from vilvm.evaluation.ledger_rows import (
    Difference,
    Protocol,
    Row,
    check_comparable,
    difference,
)
from vilvm.evaluation.ledger_tables import filled, markdown, record
from vilvm.evaluation.reconstruction import squared_error
from vilvm.evaluation.schedule import Schedule, check_schedule
from vilvm.evaluation.two_sample import Features, frechet_distance, two_sample_test
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    data_beside,
    device_of,
    evaluation_mode,
)
from vilvm.weights import Layout, find_layout, log_weights, sample

__all__ = ["Ledger", "compare"]

_FEWEST = 5  # draws: one per fold of the two-sample test


class Ledger(Result):
    """Rows in groups that may be ranked.

    It prints, and shows in a notebook, as one table for each group; ``+`` joins ledgers, also of
    different data.

    Arguments:
        rows: rows with different names.

    Raises:
        ValueError: a name appears twice.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import Ledger, compare
        >>> from vilvm.models.ppca import PPCA
        >>> x = torch.randn(60, 4)
        >>> ledger = compare({"one": PPCA(4, 1).maximise(x)}, x, num_samples=50, num_draws=0)
        >>> len(ledger), len(ledger.groups()), ledger["one"].name
        (1, 1, 'one')
    """

    def __init__(self, rows: tuple[Row, ...]):
        names = [row.name for row in rows]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"Ledger: {repeated[0]!r} appears twice; every row needs a name of its own."
            )
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise KeyError(
                f"No row {name!r}; there are {[row.name for row in self.rows]}."
            )
        return found[0]

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(self.rows + other.rows)

    def groups(self) -> dict[Protocol, list[Row]]:
        """The rows by protocol; in each group, the highest bound or least distortion first."""
        groups: dict[Protocol, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.protocol, []).append(row)
        return {
            protocol: sorted(rows, key=_badness) for protocol, rows in groups.items()
        }

    def difference(self, first: str, second: str) -> Difference:
        """The bound of `first` minus that of `second`, on the same data.

        Raises:
            ValueError: they cannot be compared; the message gives the reason.
        """
        return difference(*check_comparable(self[first], self[second]))

    def rank(self, protocol: Protocol | None = None) -> list[str]:
        """Names, the best first: of all rows, or of those with this protocol.

        Raises:
            ValueError: two rows cannot be compared; the message gives the reason.
        """
        rows = [row for row in self.rows if protocol in (None, row.protocol)]
        for row in rows[1:] or rows:
            check_comparable(rows[0], row)
        return [row.name for row in sorted(rows, key=_badness)]

    @property
    def notes(self) -> list[str]:
        """Why something is missing, by row."""
        return [f"{row.name}: {note}" for row in self.rows for note in row.notes]

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a model: its group, numbers, standard errors, protocol.

        Bounds, rate, distortion and "behind_best", the paired difference to the best bound of the
        group, are in the column "unit" (nats per datum); "ess" is a number of samples, "sse" the
        squared error of a reconstruction, "two_sample" an accuracy, "seconds" of training.
        """
        records = [
            {"group": number, **record(row, rows[0])}
            for number, rows in enumerate(self.groups().values(), start=1)
            for row in rows
        ]
        names = dict.fromkeys(name for one in records for name in one)
        return frame_of({name: [one[name] for one in records] for name in names})

    def plot(self) -> Any:
        """The bounds of each group, a matplotlib figure; see ``vilvm.plots.ledger_bounds``.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plots().ledger_bounds(self)

    def to_csv(self, path: Path | str) -> None:
        """Writes the frame as CSV, atomically."""
        text = io.StringIO()
        self.to_frame().to_csv(text, index=False)
        write_atomic(Path(path), text.getvalue())

    def to_markdown(self) -> str:
        """A Markdown table for each group, under its protocol."""
        tables = [markdown(protocol, rows) for protocol, rows in self.groups().items()]
        return "\n\n".join(tables) + "\n"

    def _headline(self) -> Mapping[str, Any]:
        return {"rows": [row.name for row in self.rows], "groups": len(self.groups())}

    def _contents(self) -> Iterator[str | Table]:
        groups = self.groups()
        for protocol, rows in groups.items():
            yield str(protocol)
            yield Table(*filled(rows))
        if len(groups) > 1:
            yield (
                "Rows of different groups cannot be ranked against each other: their protocols "
                "differ."
            )


def compare(
    models: Mapping[Any, LatentVariableModel],
    data: Any,
    *,
    num_samples: int = 5000,
    batch_size: int | None = None,
    ais: Schedule | None = None,
    held_out: Any = None,
    num_draws: int = 1000,
    features: Features | None = None,
    seconds: Mapping[Any, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Ledger:
    """Evaluates several models on the same data.

    Arguments:
        models: the models by name, or by their settings in a sweep: text, a number or a tuple of
            them; none is changed.
        data: the data of the bounds: ``Data``, a tensor, or a tuple or dict of tensors with one
            datum per row.
        num_samples: Monte Carlo samples per datum.
        batch_size: data per pass, as for ``evaluate``.
        ais: schedule of annealed importance sampling, for a bound that depends less on the guide;
            None for no such bound.
        held_out: data that draws are compared with; by default those of the bounds.
        num_draws: draws and held-out data for the two-sample test and the Fréchet distance; 0 for
            neither.
        features: features for the Fréchet distance (``fit_features``), which is left out without
            them.
        seconds: training times by the same keys, for the table.
        seed: seed of samples, transform, draws and classifier.
        progress: whether to show progress bars.

    Returns:
        Ledger.

    Raises:
        ValueError: there is no model, or seconds name an unknown one.
        ContractError: a model cannot be run on these data; the message names it.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.evaluation import compare
        >>> x = torch.randn(60, 4)
        >>> models = {"one": PPCA(4, 1).maximise(x), "two": PPCA(4, 2).maximise(x)}
        >>> compare(models, x, num_samples=50, num_draws=20).rank()
        ['two', 'one']
    """
    seed = check_seed("compare: seed", seed)
    num_samples = check_number("compare: num_samples", num_samples)
    batch_size = optional(check_number, "compare: batch_size", batch_size)
    _check_models(models, seconds)
    num_draws = check_number("compare: num_draws", num_draws, least=0)
    ais = optional(check_schedule, "compare: ais", ais)
    first = next(iter(models.values()))
    fixed = data_beside(first, data).fixed(seed)
    contents = fixed.fingerprint()[:12]
    other = fixed
    if held_out is not None:
        other = data_beside(first, held_out, "held-out data").fixed(seed)
    quality = _Quality(num_draws, _held_out(other, num_draws, seed), features, seed)
    options: dict[str, Any] = {
        "num_samples": num_samples,
        "seed": seed,
        "progress": progress,
    }
    ledger = Ledger(())
    for key, lvm in models.items():
        name = _name(key)
        here = fixed.to(device_of(lvm, fixed.device))
        try:
            # Each model starts from the seed, so that a row does not depend on the others.
            with seeded(seed, here.device):
                evaluation = evaluate(lvm, here, batch_size=batch_size, **options)
                batch = _few(here, batch_size or 2)
                layout = find_layout(lvm, batch)
                row = Row(
                    name=name,
                    protocol=_protocol(evaluation, contents),
                    evaluation=evaluation,
                    parameters=_parameters(lvm, batch, layout),
                    seconds=(seconds or {}).get(key),
                )
                if evaluation.bounds.refusal:
                    row = _noted(row, evaluation.bounds.refusal)
                row = _with_squared_error(row, lvm, here)
                row = _with_ais(row, lvm, here, ais, seed=seed, progress=progress)
                row = quality.added_to(row, lvm, layout)
        except ContractError as error:
            raise ContractError(f"compare: {name}: {error}") from None
        ledger += Ledger((row,))
    return ledger


def _name(key: Any) -> str:
    """The name of a row: text as it is, the settings in a tuple after one another."""
    if isinstance(key, tuple):
        return ", ".join(map(str, key))
    return str(key)


def _check_models(models: Any, seconds: Mapping[Any, float] | None) -> None:
    """Raises ValueError unless models are a non-empty dict that has all names of seconds."""
    if not isinstance(models, Mapping):
        raise ValueError(
            f"compare: models must be a dict, name: model; got a {type(models).__name__}."
        )
    if not models:
        raise ValueError("compare: no models; give them as {name: model}.")
    unknown = [key for key in seconds or {} if key not in models]
    if unknown:
        raise ValueError(
            f"compare: seconds of {unknown[0]!r} are given, and the models are {list(models)}."
        )


def _few(data: Data, count: int) -> Any:
    """A batch of `count` data, or of all if they cannot be cut."""
    return data.subset(slice(0, count)).x if data.divisible else data.x


def _protocol(evaluation: Evaluation, contents: str) -> Protocol:
    given = evaluation.protocol
    bound = "none" if evaluation.bounds.refusal else "iwae"
    families = sorted(given["likelihood"].items())
    likelihood = ", ".join(f"{site} ~ {family}" for site, family in families)
    names = ("data", "split", "num_data", "transform", "num_samples", "unit")
    fields = {name: given[name] for name in names}
    return Protocol(likelihood=likelihood, contents=contents, bound=bound, **fields)


def _parameters(lvm: LatentVariableModel, batch: Any, layout: Layout) -> int:
    """The number of parameters that the log-weights depend on, without a replaced guide's."""
    if not isinstance(lvm, torch.nn.Module):
        return 0
    parameters = [p for p in lvm.parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad(), evaluation_mode(lvm):
            total = log_weights(lvm, batch, 1, layout=layout).log_weight.sum()
        if not total.requires_grad:
            return 0
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
    finally:
        for p, trainable in zip(parameters, before, strict=True):
            p.requires_grad_(trainable)
    return sum(
        p.numel() for p, grad in zip(parameters, grads, strict=True) if grad is not None
    )


def _with_squared_error(row: Row, lvm: LatentVariableModel, data: Data) -> Row:
    try:
        return replace(row, sse=squared_error(lvm, data))
    except ContractError as error:
        return _noted(row, f"no reconstruction: {error}")


def _with_ais(
    row: Row,
    lvm: LatentVariableModel,
    data: Data,
    schedule: Schedule | None,
    **options: Any,
) -> Row:
    if schedule is None:
        return row
    try:
        found = annealed(lvm, data, schedule, **options)
    except ContractError as error:
        return _noted(row, f"no AIS: {error}")
    row = replace(row, ais=found.bound)
    unreliable = int((~found.reliable).sum())
    if not unreliable:
        return row
    return _noted(
        row,
        f"AIS has fewer than {FEW:g} effective chains for {unreliable} of {len(data)} data; there "
        "its error is unreliable, and the bound may be loose.",
    )


def _held_out(fixed: Data, count: int, seed: int) -> Tensor | None:
    """Some of the held-out data, at random; None without draws, or if they are not one tensor."""
    if not count or not isinstance(fixed.x, Tensor):
        return None
    order = torch.randperm(len(fixed), generator=torch.Generator().manual_seed(seed))
    return fixed.x.cpu()[order[:count]]


class _Quality(NamedTuple):
    """How draws from a model's prior are compared with held-out data.

    Arguments:
        num_draws: draws; 0 for no comparison.
        real: held-out data, if they are one tensor.
        features: features for the Fréchet distance, or None.
        seed: seed of the classifier.
    """

    num_draws: int
    real: Tensor | None
    features: Features | None
    seed: int

    def added_to(self, row: Row, lvm: LatentVariableModel, layout: Layout) -> Row:
        """The row with the comparison, or with a note why there is none."""
        if not self.num_draws:
            return row
        try:
            real = self._enough()
            drawn = self._draws(lvm, layout, real)
        except ContractError as error:
            return _noted(row, str(error))
        row = replace(row, two_sample=two_sample_test(real, drawn, seed=self.seed))
        if self.features is None:
            return row
        distance = frechet_distance(
            self.features(real), self.features(drawn[: len(real)])
        )
        return replace(row, frechet=distance)

    def _enough(self) -> Tensor:
        """The held-out data; raises ContractError if they, or the draws, are too few."""
        if self.real is None or min(len(self.real), self.num_draws) < _FEWEST:
            raise ContractError(
                f"no two-sample test: it needs {_FEWEST} draws, and {_FEWEST} held-out data in "
                "one tensor."
            )
        return self.real

    def _draws(self, lvm: LatentVariableModel, layout: Layout, real: Tensor) -> Tensor:
        """Draws of the one observed site; raises ContractError if they are not like the data."""
        try:
            sites = sample(lvm, self.num_draws)
        except ContractError as error:
            raise ContractError(f"no draws: {error}") from None
        drawn = [
            value.cpu() for name, value in sites.items() if name in layout.observed
        ]
        shapes = [tuple(value.shape[1:]) for value in drawn]
        if shapes != [tuple(real.shape[1:])]:
            raise ContractError(
                f"no draws: {shapes} is not the shape of a datum, {tuple(real.shape[1:])}."
            )
        if not bool(torch.isfinite(drawn[0]).all()):
            raise ContractError("no two-sample test: some draws are not finite.")
        return drawn[0]


def _noted(row: Row, note: str) -> Row:
    return replace(row, notes=(*row.notes, note))


def _badness(row: Row) -> float:
    """The sort key of the rows of a group: the best row has the smallest."""
    return row.evaluation.distortion.mean if row.bound is None else -row.bound.mean
