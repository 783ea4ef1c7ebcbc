"""The answer of ``infer``: draws of the posterior, and whether to trust them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.poutine.reparam_messenger import ReparamHandler
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm._runtime.results import Result, Table, frame_of, number
from vilvm.data._column_names import set_columns, training_columns
from vilvm.diagnostics._components import indexed
from vilvm.diagnostics._coordinates import NAMELESS, Coordinates
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.evaluation import Estimate
from vilvm.inference._chains import convergence
from vilvm.inference._clock import Rung
from vilvm.lvm import NotApplicable, Pair, fixed_beside
from vilvm.weights import replicate
from vilvm.wrappers.in_float64 import InFloat64

__all__ = ["Posterior", "Summary"]

_MOST_ROWS = 60
_HEADS = ("mean", "sd", "5 %", "95 %", "MCSE")


class Summary(NamedTuple):
    """One scalar of the posterior.

    Arguments:
        mean, sd: posterior mean and standard deviation.
        low, high: quantiles of 5 % and 95 %.
        mcse: Monte Carlo standard error of the mean.
        ess: effective sample size of the mean.
        r_hat: nested R̂ of the chains; NaN for weighted draws.

    Examples:
        >>> from vilvm.inference import Summary
        >>> Summary(0.0, 1.0, -1.6, 1.6, 0.01, 10_000.0, 1.0).sd
        1.0
    """

    mean: float
    sd: float
    low: float
    high: float
    mcse: float
    ess: float
    r_hat: float


@dataclass(frozen=True, repr=False)
class Posterior(Result):
    """Draws of a posterior, with the approximation that they come from and the verdict.

    It prints, and shows in a notebook, as the verdict, a table of all scalars, and the findings.

    Arguments:
        lvm: the model with the approximation as its guide, in float64. Latents of hierarchical
            priors may be in standard units there ("theta_decentered").
        data: what the model was called with, in float64.
        draws: by latent and deterministic site, draws of equal weight, shape (num_draws, *event).
        chains: number of chains in `draws`, one after the other; 1 if the draws are independent.
        rung: how the draws were made: "weights" or "chains".
        k: Pareto k̂ of the guide's weights.
        ess: effective sample size of the weights.
        findings: what was found about the draws, the most severe first.
        history: the rungs of the ladder, with their times.
        gradients: points at which a gradient was computed.
        densities: points at which the density alone was computed.
        seconds: time taken.
        modes: weight of each region of the posterior, largest first.
        names: of the components, from coords and dims.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> posterior = vilvm.infer(model, torch.tensor([0.5, 1.5]), progress=False)
        >>> posterior.trusted, round(posterior.summary()["mu"].mean, 1)
        (True, 1.0)
    """

    lvm: Any
    data: Any = field(repr=False)
    draws: dict[str, Tensor] = field(repr=False)
    chains: int
    rung: str
    k: float
    ess: float
    findings: tuple[Finding, ...]
    history: tuple[Rung, ...] = field(repr=False)
    gradients: int
    densities: int
    seconds: float
    modes: tuple[float, ...] = (1.0,)
    names: Coordinates = field(default=NAMELESS, repr=False)
    _evidence: Estimate | str = field(default="", repr=False)

    @property
    def trusted(self) -> bool:
        """Whether no finding is a warning."""
        return all(finding.severity < Severity.WARNING for finding in self.findings)

    @property
    def verdict(self) -> str:
        """A sentence about the draws."""
        if not self.trusted:
            return f"Do not trust these draws. {self.findings[0].verdict}"
        notes = [f for f in self.findings if f.severity == Severity.NOTE]
        if notes:
            return f"Nothing speaks against these draws; note: {notes[0].verdict}"
        return "Nothing speaks against these draws."

    @property
    def log_evidence(self) -> Estimate:
        """log p(x) in nats, with its standard error, by importance sampling from the guide.

        Raises:
            NotApplicable: a prior is flat, or the weights are too uneven (k̂ > 0.7).
        """
        if isinstance(self._evidence, str):
            raise NotApplicable(self._evidence)
        return self._evidence

    def summary(self) -> dict[str, Summary]:
        """Mean, standard deviation, quantiles and errors of every scalar, by its name.

        The scalars of a site θ are "theta[0]", "theta[1]", …, by their index in its tensor.
        """
        return {
            name: row
            for site, draws in self.draws.items()
            for name, row in self._rows(site, draws)
        }

    def _rows(self, site: str, draws: Tensor) -> list[tuple[str, Summary]]:
        x = draws.double().reshape(len(draws), -1)
        mean, sd = x.mean(0), x.std(0)
        low, high = torch.quantile(x, x.new_tensor([0.05, 0.95]), dim=0)
        if self.chains > 1:
            of = convergence(x.unflatten(0, (self.chains, -1)).transpose(0, 1))
            errors, sizes, r_hat = of.mcse, of.ess, of.r_hat
        else:
            sizes = torch.full_like(mean, min(self.ess, len(x)))
            errors, r_hat = sd / sizes.sqrt(), torch.full_like(mean, math.nan)
        columns = torch.stack([mean, sd, low, high, errors, sizes, r_hat], 1).tolist()
        indices = np.ndindex(*draws.shape[1:])
        names = [self.names.renamed(indexed(site, index)) for index in indices]
        return [(n, Summary(*row)) for n, row in zip(names, columns, strict=True)]

    def to_datatree(self, **options: Any) -> Any:
        """The draws as an ArviZ DataTree, dimensions (chain, draw, *event).

        Arguments:
            options: num_predictive, coords, dims and seed of ``export.draws_to_datatree``.

        Returns:
            The DataTree, whose attributes hold the verdict, the rung and k̂ too.

        Raises:
            ImportError: ArviZ is not installed.
        """
        from vilvm.export import draws_to_datatree  # needs ArviZ

        shaped = {
            name: value.unflatten(0, (self.chains, -1))
            for name, value in self.draws.items()
        }
        named = {"coords": self.names.coords, "dims": self.names.own_dims}
        options = {**named, **options}
        tree = draws_to_datatree(shaped, self._plain_model(), self.data, **options)
        tree.attrs |= {"verdict": self.verdict, "rung": self.rung, "pareto_k": self.k}
        return tree

    def predict(
        self, like: Any, *, num_samples: int = 1000, mean: bool = False, seed: int = 0
    ) -> dict[str, Tensor]:
        """Draws of the observed sites of new data, p(y_new | data), for a model of shared latents.

        Arguments:
            like: what the model is called with, of which it reads the covariates and the number of
                data; values that it observes are not read, so zeros of the right shape do.
            num_samples: of the posterior draws, evenly over all of them; at most all.
            mean: whether to return E[y_new | z] for each draw z, which has no observation noise.
            seed: of the observation noise.

        Returns:
            Every observed site by name, shape (num_samples, num_data, ...).

        Raises:
            ContractError: a latent belongs to single data, and the new data have another number.
            ValueError: `like` has other columns than the data.

        Examples:
            >>> import pyro, torch, vilvm
            >>> import pyro.distributions as dist
            >>> def model(data):
            ...     x, y = data
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
            >>> x = torch.linspace(-1.0, 1.0, 20)
            >>> posterior = vilvm.infer(model, (x, 2 * x), progress=False)
            >>> new = torch.tensor([3.0, 4.0, 5.0])
            >>> posterior.predict((new, torch.zeros(3)))["y"].mean(0).round().tolist()
            [6.0, 8.0, 10.0]
        """
        num_samples = check_number("predict: num_samples", num_samples)
        seed = check_seed("predict: seed", seed)
        lvm = InFloat64(Pair(self._plain_model(), self.lvm.lvm.guide))
        set_columns(lvm, training_columns(self.lvm))
        new = fixed_beside(lvm, like, seed)
        total = len(next(iter(self.draws.values())))
        chosen = torch.linspace(0, total - 1, min(num_samples, total)).round().long()
        draws = {name: value[chosen] for name, value in self.draws.items()}
        with seeded(seed, new.device):
            return replicate(lvm, draws, like=new.x, mean=mean)

    def _plain_model(self) -> Any:
        """The model whose latents have the names of the draws, not in standard units."""
        model = self.lvm.lvm.model.__wrapped__
        while isinstance(model, ReparamHandler) and isinstance(
            model.msngr.config, dict
        ):
            if not set(model.msngr.config) <= set(self.draws):
                break
            model = model.fn
        return model

    def to_frame(self) -> Any:
        """``summary`` as a pandas DataFrame with one row a scalar.

        Columns: name; mean, sd, the quantiles low (5 %) and high (95 %) and the Monte Carlo error
        mcse of the mean, in the unit of the scalar; ess, a number of draws; r_hat, NaN for
        weighted draws.
        """
        rows = self.summary()
        columns = {
            n: [getattr(row, n) for row in rows.values()] for n in Summary._fields
        }
        return frame_of({"name": list(rows), **columns})

    def _headline(self) -> Mapping[str, Any]:
        return {
            "trusted": self.trusted,
            "sites": list(self.draws),
            "draws": len(next(iter(self.draws.values()))),
            "rung": repr(self.rung),
            "k": self.k,
            "ess": self.ess,
        }

    def _contents(self) -> Iterator[str | Table]:
        rows = self.summary()
        yield self.verdict
        last = "k̂" if self.chains == 1 else "R̂"
        shown = [self._cells(*row) for row in list(rows.items())[:_MOST_ROWS]]
        yield Table(["", *_HEADS, last, "ESS"], shown)
        if len(rows) > _MOST_ROWS:
            yield f"… and {len(rows) - _MOST_ROWS} more, see summary()."
        yield from map(str, self.findings)

    def _cells(self, name: str, row: Summary) -> list[str]:
        """A row of the table: numbers to the digits that a reader compares."""
        check = self.k if self.chains == 1 else row.r_hat
        return [name, *map(number, row[:5]), f"{check:.3f}", f"{row.ess:.0f}"]
