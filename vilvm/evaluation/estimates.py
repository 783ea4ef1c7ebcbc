"""Estimates with their standard errors, and the results that hold them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.results import Result, Table, frame_of, table_of

__all__ = ["FEW", "Bounds", "Estimate", "Evaluation", "log_mean_error"]

FEW = 5.0  # effective samples below which the Monte Carlo error is itself unreliable


class Estimate(NamedTuple):
    """A quantity for every datum, float64, with Monte Carlo standard errors.

    Arguments:
        values: shape (num_data,).
        errors: Monte Carlo standard errors, shape (num_data,).

    Examples:
        >>> import torch
        >>> from vilvm import Estimate
        >>> bound = Estimate(torch.tensor([-2.0, -4.0]), torch.tensor([0.3, 0.4]))
        >>> bound.mean, round(bound.se, 2), round(bound.mc_se, 2)
        (-3.0, 1.0, 0.25)
    """

    values: Tensor
    errors: Tensor

    @property
    def mean(self) -> float:
        """The mean over the data."""
        return self.values.mean().item()

    @property
    def se(self) -> float:
        """Standard error of the mean as an estimate of its expectation over new data.

        Monte Carlo error is included. For a single datum, which has no spread, it is `mc_se`.
        """
        if len(self.values) == 1:
            return self.mc_se
        return self.values.std().item() / math.sqrt(len(self.values))

    @property
    def mc_se(self) -> float:
        """Standard error of the mean as an estimate for these data: Monte Carlo error alone."""
        return self.errors.square().sum().sqrt().item() / len(self.values)

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference for each datum; the two Monte Carlo errors count as independent."""
        errors = (self.errors.square() + other.errors.square()).sqrt()
        return Estimate(self.values - other.values, errors)

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.se:.2g}"

    def __repr__(self) -> str:
        return f"Estimate({self}, {len(self.values)} values)"

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a datum: datum, value, and its Monte Carlo error."""
        return frame_of(
            {
                "datum": range(len(self.values)),
                "value": self.values,
                "error": self.errors,
            }
        )


class Bounds(dict[str, Estimate]):
    """The bounds by name; a missing one raises a KeyError that gives the reason.

    Arguments:
        bounds: the bounds that exist.
        refusal: why others do not exist; empty if they were not requested.

    Examples:
        >>> from vilvm.evaluation import Bounds
        >>> Bounds({}, refusal="the guide is degenerate")["elbo"]
        Traceback (most recent call last):
        KeyError: 'the guide is degenerate'
    """

    def __init__(self, bounds: dict[str, Estimate], refusal: str = ""):
        super().__init__(bounds)
        self.refusal = refusal

    def __missing__(self, name: str) -> Estimate:
        raise KeyError(
            self.refusal
            or f"No bound {name!r} was estimated; there are {sorted(self)}."
        )


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """The result of ``evaluate``. Numbers of different protocols cannot be compared.

    It prints, and shows in a notebook, as its protocol and the table of ``to_frame``.

    Arguments:
        bounds: the requested ones of "elbo", "iwae" and "exact", in nats per datum. For a
            degenerate guide or a flat prior, access to a missing bound raises a KeyError with
            the reason.
        rate: KL(q(z | x) ‖ p(z)), in nats per datum; None if there is no bound.
        distortion: −E_q log p(x | z), in nats per datum.
        ess: effective sample size of the weights, between 1 and num_samples, shape (num_data,);
            None if there is no bound.
        num_samples: Monte Carlo samples per datum.
        chunk: samples per pass; another number gives other draws.
        protocol: data set, split, number of data, transform, seed, likelihoods, number of samples,
            and unit: "nats per datum", or "nats, all data together" for a model whose data share a
            latent (num_data is then 1 in the shapes above).
        seconds: time taken.
        index: labels of the data's rows, if they have some.

    Examples:
        >>> import torch
        >>> from vilvm import evaluate
        >>> from vilvm.models.vae import VAE
        >>> found = evaluate(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6), num_samples=50)
        >>> found.protocol["unit"], found.rate.values.shape
        ('nats per datum', torch.Size([9]))
    """

    bounds: Bounds
    rate: Estimate | None
    distortion: Estimate
    ess: Tensor | None
    num_samples: int
    chunk: int
    protocol: dict[str, Any]
    seconds: float
    index: Any = field(default=None, repr=False)

    def to_frame(self, *, per_datum: bool = False) -> Any:
        """A pandas DataFrame of bounds, rate, distortion and effective sample size.

        Bounds, rate and distortion are in the unit of the protocol, nats per datum; the effective
        sample size is a number of samples.

        Arguments:
            per_datum: whether to return one row a datum, with its label, a column for each
                quantity and, as "elbo_error", its Monte Carlo error; by default there is one row
                a quantity, with its mean over the data, the standard error for new data (se) and
                for these (mc_se).
        """
        if per_datum:
            labels: Any = range(len(self.distortion.values))
            if self.index is not None and len(self.index) == len(labels):
                labels = list(self.index)
            columns: dict[str, Any] = {"datum": labels}
            for name, found in self._estimates().items():
                columns |= {name: found.values, f"{name}_error": found.errors}
            if self.ess is not None:
                columns["ess"] = self.ess
            return frame_of(columns)
        rows = [
            {"quantity": name, **_means(found)}
            for name, found in self._estimates().items()
        ]
        if self.ess is not None:
            rows.append({"quantity": "ess", "mean": self.ess.mean().item()})
        names = ("quantity", "mean", "se", "mc_se")
        return frame_of({n: [row.get(n, math.nan) for row in rows] for n in names})

    def _estimates(self) -> dict[str, Estimate]:
        others = {"rate": self.rate, "distortion": self.distortion}
        return {
            **self.bounds,
            **{name: found for name, found in others.items() if found is not None},
        }

    def _headline(self) -> Mapping[str, Any]:
        return {**self._estimates(), "num_samples": self.num_samples}

    def _contents(self) -> Iterator[str | Table]:
        given = self.protocol
        yield (
            f"{given['data']} {given['split']}, {given['num_data']:,} data, "
            f"{self.num_samples:,} samples; {given['unit']}."
        )
        yield from table_of(self.to_frame())
        if self.bounds.refusal:
            yield self.bounds.refusal
        if few := self._uneven():
            yield (
                f"The weights of {few:,} of {len(self.distortion.values):,} data have fewer than "
                f"{FEW:g} effective samples; there the importance-weighted bound is loose, and "
                "its mc_se unreliable."
            )

    def _uneven(self) -> int:
        """The number of data whose effective sample size is too small for the bound's error."""
        if self.ess is None or "iwae" not in self.bounds or self.num_samples < FEW:
            return 0
        return int((self.ess < FEW).sum())

    def to_dict(self) -> dict[str, Any]:
        """Means and standard errors as plain numbers, for JSON."""
        bounds = {name: _means(bound) for name, bound in self.bounds.items()}
        for name in set(bounds) - {"exact"}:
            bounds[name]["num_samples"] = self.num_samples
        ess = None
        if self.ess is not None:
            ess = {"mean": self.ess.mean().item(), "min": self.ess.min().item()}
        return {
            "bounds": bounds,
            "rate": self.rate and _means(self.rate),
            "distortion": _means(self.distortion),
            "ess": ess,
            "protocol": self.protocol,
        }


def log_mean_error(ess: Tensor, num: int) -> Tensor:
    """Standard error of the log of a mean of `num` weights, by the delta method.

    Var log mean(w) ≈ Var(w) / (S E[w]²) = 1/ESS − 1/S. NaN for a single weight, which has no
    spread.

    Arguments:
        ess: effective sample sizes, any shape.
        num: the number of weights, S.

    Returns:
        Errors in nats, of the shape of `ess`.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation.estimates import log_mean_error
        >>> log_mean_error(torch.tensor([100.0, 20.0]), 100)
        tensor([0.0000, 0.2000])
    """
    if num == 1:
        return torch.full_like(ess, math.nan)
    return (1 / ess - 1 / num).clamp(min=0).sqrt()


def _means(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.mean, "se": estimate.se, "mc_se": estimate.mc_se}
