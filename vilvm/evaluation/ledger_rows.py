"""The rows of a ledger: what is known of one model, and by how much one bound is above another."""

from dataclasses import dataclass
from typing import NamedTuple

from vilvm.evaluation.evaluate import Estimate, Evaluation
from vilvm.evaluation.two_sample import TwoSample

__all__ = ["Difference", "Protocol", "Row", "check_comparable", "difference"]


class Protocol(NamedTuple):
    """What must be equal for two rows to be ranked.

    Arguments:
        likelihood: the family of every observed site.
        data, split, num_data, transform: what was evaluated on.
        contents: the first digits of a SHA-256 of these data as the models saw them.
        bound: "iwae", "elbo" or "none".
        num_samples: Monte Carlo samples a datum.
        unit: of the bound.
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
        what = (
            f"{self.data} {self.split}, {self.num_data:,} data, "
            f"{'as they are' if self.transform == 'none' else self.transform}"
        )
        return f"{self.likelihood} · {what} · {bound}, {self.unit}"


class Difference(NamedTuple):
    """By how much one bound is above another on the same data, in the bound's unit.

    Arguments:
        mean: over the data.
        se: paired standard error, Monte Carlo error included.
    """

    mean: float
    se: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.se:.2f}"


@dataclass(frozen=True)
class Row:
    """One model in a ledger.

    Arguments:
        name: of the model.
        protocol: what its bound may be compared with.
        evaluation: bounds, rate and distortion.
        parameters: of those tensors that its model and guide make use of, frozen ones and those of
            a fitted prior included.
        sse: squared error of reconstructions; None where they have not the shape of the data.
        two_sample: the classifier's accuracy between draws and held-out data; None without draws.
            It and the next may be compared where number of draws and held-out data are the same.
        frechet: distance between draws and held-out data; None without draws or without features.
            Of one set of features only.
        seconds: to train, if that was told.
        notes: why something is missing.
    """

    name: str
    protocol: Protocol
    evaluation: Evaluation
    parameters: int
    sse: Estimate | None = None
    two_sample: TwoSample | None = None
    frechet: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def bound(self) -> Estimate | None:
        """The bound that it is ranked by, or None."""
        return (
            None if self.protocol.bound == "none" else self.evaluation.bounds[self.protocol.bound]
        )


def check_comparable(a: Row, b: Row) -> None:
    """Raises ValueError, saying why, unless the bounds of two rows may be ranked."""
    differ = [
        name for name in Protocol._fields if getattr(a.protocol, name) != getattr(b.protocol, name)
    ]
    if differ:
        what = "; ".join(
            f"{n} ({getattr(a.protocol, n)} / {getattr(b.protocol, n)})" for n in differ
        )
        raise ValueError(
            f"{a.name!r} and {b.name!r} cannot be ranked against each other: they differ in "
            f"{what}."
        )
    if a.bound is None:
        raise ValueError(
            f"{a.name!r} cannot be ranked, for it has no bound: {a.evaluation.bounds.refusal}"
        )


def difference(a: Estimate, b: Estimate) -> Difference:
    """By how much `a` is above `b`, datum by datum."""
    paired = a - b
    return Difference(paired.mean, paired.se)
