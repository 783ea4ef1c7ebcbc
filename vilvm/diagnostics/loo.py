"""PSIS leave-one-out prediction: how well the posterior given all other data predicts a datum.

If data share latents z, the expected log predictive density of datum i given all others is

    elpd_i = log p(x_i | x_{−i}) = log ( Σ_s r_s p(x_i | z_s) / Σ_s r_s ),
    r_s ∝ w_s / p(x_i | z_s),   w_s = p(x, z_s) / q(z_s | x),

for draws z_s of the guide. The weights w turn them into draws of the posterior, and the division
removes datum i. The r are Pareto-smoothed, and k̂_i shows whether so many draws are enough. The
sum is elpd = Σ_i elpd_i; the effective number of parameters is p = Σ_i log p(x_i | x) − elpd.

If every latent belongs to one datum, nothing else is known about a datum that is left out: given
the model's parameters p(x_i | x_{−i}) = p(x_i), which ``evaluate`` estimates, on data that were
not trained on.

References: Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC,
Vehtari, Gelman and Gabry, 2017; Bayesian Leave-One-Out Cross-Validation for Large Data, Magnusson,
Andersen, Jonasson and Vehtari, 2019 (draws of an approximate posterior).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.special import ndtri
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm._runtime.random import seeded
from vilvm._runtime.results import Result, frame_of
from vilvm.data.tensors import tensors_of
from vilvm.diagnostics._tail import good_k, tail_error
from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws
from vilvm.diagnostics._verdicts.loo import loo_finding
from vilvm.diagnostics.finding import Finding
from vilvm.diagnostics.pareto_k import JOINT_ROWS
from vilvm.diagnostics.psis import Smoothed, psis
from vilvm.lvm import ContractError, LatentVariableModel
from vilvm.weights import Layout, LogWeights, weight_chunks
from vilvm.weights.prepared import Prepared, prepared_of

__all__ = ["LOO", "loo"]

_KNOWN = 10_000  # draws from which k̂ counts as known
_CHANCE = 0.01  # false-alarm rate over all data, with fewer draws
_KEPT = 20_000_000  # draws × data held at a time
_WORKED = 4_000_000  # draws × data processed at a time


@dataclass(frozen=True, repr=False)
class LOO(Result):
    """Leave-one-out prediction, in nats.

    Arguments:
        elpd: expected log predictive density, summed over the data.
        se: its standard error over the data.
        p: effective number of parameters.
        elpd_i: expected log predictive density of each datum, shape (num_data,).
        k: Pareto k̂ of each datum's weights, shape (num_data,).
        joint_k: Pareto k̂ of the guide's own weights, with all data.
        num_samples: S, the number of draws.
        cut: what is missing for lack of time.
        own: whether data have latents of their own, which weights can seldom infer without the
            datum.
        data_names: name of each datum in the full data set; empty for numbers.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.loo import LOO
        >>> k = torch.tensor([0.1, 0.2])
        >>> LOO(-3.0, 0.5, 1.0, torch.tensor([-1.0, -2.0]), k, 0.1, 1000).finding.severity.name
        'OK'
    """

    elpd: float
    se: float
    p: float
    elpd_i: Tensor
    k: Tensor
    joint_k: float
    num_samples: int
    cut: str = ""
    own: bool = False
    data_names: tuple[str, ...] = ()

    @property
    def threshold(self) -> float:
        """The k̂ up to which so many draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
        return good_k(self.num_samples)

    @property
    def certain(self) -> float:
        """The k̂ above which a datum moves the posterior, for any number of draws.

        Few draws have a threshold below 0.7; then it is 0.7 plus the noise of k̂.
        """
        if self.threshold >= good_k(_KNOWN):
            return self.threshold
        z = float(-ndtri(_CHANCE / len(self.k)))
        return good_k(_KNOWN) + z * tail_error(self.num_samples)

    @property
    def finding(self) -> Finding:
        """CRITICAL if the guide is too far from the posterior, WARNING for influential data.

        NOTE if most data are influential, if each datum has a latent of its own, or if there are
        too few draws to decide.
        """
        return loo_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a datum: datum, elpd (nats), k (Pareto k̂)."""
        return frame_of({"datum": range(len(self.k)), "elpd": self.elpd_i, "k": self.k})


@torch.no_grad()
def loo(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    num_samples: int = 10_000,
    budget: float | None = None,
    seed: int = 0,
) -> LOO:
    """PSIS leave-one-out prediction of a model whose data share latents.

    Arguments:
        lvm: the model and guide, with the data in a plate; or a ``Prepared``, which holds the data
            too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        num_samples: draws of the guide, at least 100.
        budget: seconds; if short, fewer draws are made, see `cut`.
        seed: seed of the draws and of the data's transform.

    Returns:
        LOO, in nats.

    Raises:
        ContractError: every latent belongs to one datum; an observed site is outside the plate
            over the data, or belongs to all data jointly; the guide is degenerate, or a prior
            flat.

    Reference: Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC,
    Vehtari, Gelman and Gabry, 2017.

    Examples:
        >>> from vilvm.models.eight_schools import EightSchools, eight_schools
        >>> from vilvm.diagnostics import loo
        >>> found = loo(EightSchools(guide="mean_field"), eight_schools(), num_samples=500)
        >>> found.elpd_i.shape
        torch.Size([8])
    """
    num_samples = wanted = check_number("loo: num_samples", num_samples, 100)
    time, cut = TimeBudget(budget), ""
    prepared = prepared_of("loo", lvm, data, seed=seed)
    _check(prepared)
    leaving = _LeavingOut(
        prepared.lvm, prepared.batches[0].x, prepared.layout, prepared.seed
    )
    with prepared.running():
        _check_sites(prepared, next(leaving.chunks(1, 1)))
        if time.is_limited:
            num_samples = affordable_draws(leaving.run, 100, wanted, time.left / 2)
        if num_samples < wanted:
            cut = f"{num_samples} of {wanted} draws"
        whole, found = leaving.each_datum(num_samples)
    elpd, fitted, k = (torch.cat(column) for column in zip(*found, strict=True))
    se = math.nan
    if len(elpd) > 1:
        se = (elpd.std() * math.sqrt(len(elpd))).item()
    return LOO(
        elpd=elpd.sum().item(),
        se=se,
        p=(fitted - elpd).sum().item(),
        elpd_i=elpd,
        k=k,
        joint_k=whole.k.item(),
        num_samples=num_samples,
        cut=cut,
        own=bool(prepared.layout.data_axes),
    )


class _Sums(NamedTuple):
    """Sums over the data for every draw, each of shape (S,).

    Arguments:
        joint: the joint log-weight.
        rest: its part without the data's likelihoods.
        finite: the sum of the finite log-likelihoods.
        impossible: the number of log-likelihoods that are −∞.
    """

    joint: Tensor
    rest: Tensor
    finite: Tensor
    impossible: Tensor


class _LeavingOut(NamedTuple):
    """Leaves out each datum of a batch by weights.

    Arguments:
        lvm: the model and guide.
        batch: all data.
        layout: the layout of the batch.
        seed: seed of the draws.
    """

    lvm: LatentVariableModel
    batch: Any
    layout: Layout
    seed: int

    def chunks(self, num_samples: int, size: int) -> Any:
        """Log-weights of `num_samples` draws, `size` at a time."""
        return weight_chunks(
            self.lvm, self.batch, num_samples, size, layout=self.layout
        )

    def run(self, num_samples: int) -> None:
        """Makes `num_samples` draws at once."""
        for _ in self.chunks(num_samples, num_samples):
            pass

    def each_datum(
        self, num_samples: int
    ) -> tuple[Smoothed, list[tuple[Tensor, Tensor, Tensor]]]:
        """The smoothed joint weights; and log p(x_i | x_{−i}), log p(x_i | x), k̂ by block."""
        width = max(1, _KEPT // num_samples)
        found, sums, whole = [], None, None
        for start in range(0, self.layout.num_data, width):
            log_p, sums_here = self._densities(num_samples, slice(start, start + width))
            if sums is None or whole is None:
                sums, whole = sums_here, psis(sums_here.joint)
            blocks = log_p.split(max(1, _WORKED // num_samples), 1)
            found += [_left_out(block, whole.log_weights, sums) for block in blocks]
        assert whole is not None
        return whole, found

    def _densities(self, num_samples: int, columns: slice) -> tuple[Tensor, _Sums]:
        """log p(x_i | z) of some of the data, shape (S, some), and the sums over all data."""
        size = max(1, JOINT_ROWS // max(self.layout.num_data, 1))
        # Every call has the same draws.
        with seeded(self.seed, tensors_of(self.batch)[0].device):
            found = [_terms(w, columns) for w in self.chunks(num_samples, size)]
        log_p = torch.cat([p for p, _ in found])
        each = zip(*(sums for _, sums in found), strict=True)
        return log_p, _Sums(*(torch.cat(column) for column in each))


def _terms(weights: LogWeights, columns: slice) -> tuple[Tensor, _Sums]:
    """log p(x_i | z) of some of the data, shape (S, some), and the sums over all data."""
    log_p = weights.log_likelihood.double()
    impossible = log_p.isneginf()
    finite = log_p.masked_fill(impossible, 0.0).sum(1)
    sums = _Sums(weights.log_weight, -weights.rate, finite, impossible.sum(1))
    # copied, because a view would keep all columns in memory
    return log_p[:, columns].cpu().clone(), _Sums(*(s.cpu() for s in sums))


def _left_out(
    log_p: Tensor, whole: Tensor, sums: _Sums
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x_i | x_{−i}), log p(x_i | x) and k̂ of some data.

    The weight without a datum is the sum over the others, because −∞ cannot be subtracted.
    """
    impossible = log_p.isneginf()
    others = sums.finite[:, None] - log_p.masked_fill(impossible, 0.0)
    others = others.masked_fill(sums.impossible[:, None] > impossible.long(), -math.inf)
    without = psis(sums.rest[:, None] + others)
    elpd = (without.log_weights + log_p).logsumexp(0)
    return elpd, (whole[:, None] + log_p).logsumexp(0), without.k


def _check(prepared: Prepared) -> None:
    """Raises unless the data share a latent and each can be left out."""
    prepared.require_weights("loo")
    layout, name = prepared.layout, type(prepared.lvm).__name__
    if layout.local:
        raise ContractError(
            f"loo: every latent of {name} belongs to one datum, so p(x_i | the others) equals "
            "p(x_i): see evaluate, on data that were not trained on."
        )
    if layout.data_plate is None:
        raise ContractError(
            f"loo: {name} has no plate over its data that contains all of its observed sites "
            f"({', '.join(map(repr, layout.observed))}), so no datum can be left out: observe "
            "each of them in one pyro.plate, one datum per row."
        )
    if layout.subsample:
        raise ContractError(
            f"loo: {name} subsamples its plate {next(iter(layout.subsample))!r} at random; use a "
            "model whose plate contains all data."
        )


def _check_sites(prepared: Prepared, weights: LogWeights) -> None:
    """Raises unless every log-likelihood belongs to single data."""
    for site, term in weights.log_likelihoods.items():
        if term.dim() != 2:
            raise ContractError(
                f"loo: site {site!r} of {type(prepared.lvm).__name__} depends on a latent that is "
                f"summed over for all data of the plate {prepared.layout.data_plate!r} jointly, "
                "so no datum can be left out of it: let the guide draw that latent, or give each "
                "datum one of its own."
            )
