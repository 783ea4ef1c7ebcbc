"""The rows of a ledger, and the difference of two bounds."""

from dataclasses import dataclass
from typing import NamedTuple

from vilvm.evaluation.estimates import Estimate, Evaluation
from vilvm.evaluation.two_sample import TwoSample

__all__ = ["Difference", "Protocol", "Row", "check_comparable", "difference"]


class Protocol(NamedTuple):
    """The facts that must be equal for two rows to be ranked.

    Arguments:
        likelihood: the family of every observed site.
        data: the data set.
        split: the split of the data set.
        num_data: number of data evaluated.
        transform: the transform of the data.
        contents: the first digits of a SHA-256 of these data after their transform.
        bound: "iwae", "elbo" or "none".
        num_samples: Monte Carlo samples per datum.
        unit: the unit of the bound.

    Examples:
        >>> from vilvm.evaluation import Protocol
        >>> print(Protocol("x ~ Normal", "mnist", "test", 10, "none", "0f", "iwae", 50, "nats"))
        x ~ Normal · mnist test, 10 data, as they are · IWAE-50, nats
    """

    likelihood: str
    data: str
    split: str
    num_data: int
    transform: str
    contents: str
    bound: str
    num_samples: int
    unit: str

    def __str__(self) -> str:
        bound = {
            "iwae": f"IWAE-{self.num_samples}",
            "elbo": f"ELBO, {self.num_samples} samples",
            "none": "no bound",
        }[self.bound]
        transform = "as they are" if self.transform == "none" else self.transform
        what = f"{self.data} {self.split}, {self.num_data:,} data, {transform}"
        return f"{self.likelihood} · {what} · {bound}, {self.unit}"


class Difference(NamedTuple):
    """One bound minus another on the same data, in the bound's unit.

    Arguments:
        mean: mean over the data.
        se: paired standard error, Monte Carlo error included.

    Examples:
        >>> from vilvm.evaluation import Difference
        >>> print(Difference(mean=1.5, se=0.25))
        1.50 ± 0.25
    """

    mean: float
    se: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.se:.2f}"


@dataclass(frozen=True)
class Row:
    """One model in a ledger.

    Arguments:
        name: the name of the model.
        protocol: rows of the same protocol may be ranked.
        evaluation: bounds, rate and distortion.
        parameters: the number of parameters that the log-weights depend on, frozen ones and those
            of a fitted prior included.
        ais: bound by annealed importance sampling; None if it was not computed.
        sse: squared error of reconstructions; None if they lack the shape of the data.
        two_sample: accuracy of a classifier that separates draws from held-out data; None without
            draws. Comparable for the same held-out data and number of draws.
        frechet: distance between draws and held-out data; None without draws or features.
            Comparable if, in addition, the features are the same.
        seconds: training time, if given.
        notes: why something is missing.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import compare
        >>> from vilvm.models.ppca import PPCA
        >>> x = torch.randn(60, 4)
        >>> row = compare({"one": PPCA(4, 1).maximise(x)}, x, num_samples=50, num_draws=0)["one"]
        >>> row.protocol.bound, row.bound.values.shape
        ('iwae', torch.Size([60]))
    """

    name: str
    protocol: Protocol
    evaluation: Evaluation
    parameters: int
    ais: Estimate | None = None
    sse: Estimate | None = None
    two_sample: TwoSample | None = None
    frechet: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def bound(self) -> Estimate | None:
        """The bound that ranks the row, or None."""
        if self.protocol.bound == "none":
            return None
        return self.evaluation.bounds[self.protocol.bound]


def check_comparable(a: Row, b: Row) -> tuple[Estimate, Estimate]:
    """The bounds of two rows, if they may be ranked.

    Arguments:
        a: a row.
        b: another row.

    Returns:
        The bound of each.

    Raises:
        ValueError: their protocols differ, or they have no bound.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import compare
        >>> from vilvm.evaluation.ledger_rows import check_comparable
        >>> from vilvm.models.ppca import PPCA
        >>> x, options = torch.randn(60, 4), {"num_samples": 50, "num_draws": 0}
        >>> row = compare({"one": PPCA(4, 1).maximise(x)}, x, **options)["one"]
        >>> len(check_comparable(row, row))
        2
    """
    both = zip(Protocol._fields, a.protocol, b.protocol, strict=True)
    differ = [f"{name} ({one} / {other})" for name, one, other in both if one != other]
    if differ:
        raise ValueError(
            f"{a.name!r} and {b.name!r} cannot be ranked against each other: they differ in "
            f"{'; '.join(differ)}."
        )
    if a.bound is None or b.bound is None:
        raise ValueError(
            f"{a.name!r} cannot be ranked, because it has no bound: {a.evaluation.bounds.refusal}"
        )
    return a.bound, b.bound


def difference(a: Estimate, b: Estimate) -> Difference:
    """The mean of a − b over the data, with its paired standard error.

    Arguments:
        a: values of shape (num_data,).
        b: values of the same data.

    Returns:
        Difference.

    Examples:
        >>> import torch
        >>> from vilvm import Estimate
        >>> from vilvm.evaluation.ledger_rows import difference
        >>> a = Estimate(torch.tensor([1.0, 3.0]), torch.zeros(2))
        >>> print(difference(a, Estimate(torch.zeros(2), torch.zeros(2))))
        2.00 ± 1.00
    """
    paired = a - b
    return Difference(paired.mean, paired.se)
