"""Runs a pair on some data: draws, means, divergences and information of its latents."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm.data.data import Data
from vilvm.diagnostics._components import runnable
from vilvm.lvm import ContractError, LatentVariableModel
from vilvm.weights import Layout, posterior_mean, sample
from vilvm.weights.guide_density import divergences, guide_log_prob
from vilvm.weights.simulation import visible_latents

__all__ = ["ROWS", "LatentRun", "moments", "spread"]

ROWS = 50_000  # draws × data per pass
_PAIRS = 200_000  # pairs of a latent and a datum per pass


class LatentRun(NamedTuple):
    """A pair and the data that it runs on, some or all of which are used.

    Arguments:
        lvm: the model and guide.
        data: the data that the pair runs on.
        layout: the layout of these data.
        columns: the indices of the data that are used; None for all.
    """

    lvm: LatentVariableModel
    data: Data
    layout: Layout
    columns: Tensor | None = None

    def used(self, values: Tensor, axis: int = 0) -> Tensor:
        """Selects the used data."""
        if self.columns is None:
            return values
        return values.index_select(axis, self.columns)

    @property
    def at_once(self) -> int:
        """Draws per datum in a pass, which bounds the memory."""
        return max(1, ROWS // self.layout.num_data)

    def _passes(self, num_samples: int) -> list[int]:
        size = self.at_once
        return [min(size, num_samples - done) for done in range(0, num_samples, size)]

    def over_draws(
        self, mean: Callable[[int], dict[str, Tensor]], num_samples: int
    ) -> dict[str, Tensor]:
        """The mean over draws, by name; `mean` returns the mean over a given number of draws."""
        means: dict[str, Tensor] = {}
        for size in self._passes(num_samples):
            means = {
                name: means.get(name, 0.0) + value * (size / num_samples)
                for name, value in mean(size).items()
            }
        return means

    def divergences(self, num_samples: int) -> dict[str, Tensor]:
        found = divergences(self.lvm, self.data.x, num_samples, layout=self.layout)
        return {name: value.mean(0) for name, value in found.items()}

    def by_datum(self, draws: Tensor, name: str) -> Tensor:
        """Draws of a latent, shape (num_samples, num_data, *plates, *event)."""
        return draws.movedim(self.layout.data_axes[name], 1)

    def from_prior(self, num_samples: int) -> dict[str, Tensor]:
        """Draws of every latent from its prior, shape (num_samples, num_data, *plates, *event)."""
        pair = runnable(self.lvm, self.data.x)
        drawn = [
            sample(pair, size, like=self.data.x) for size in self._passes(num_samples)
        ]
        return {
            name: torch.cat([self.by_datum(part[name], name) for part in drawn])
            for name in self.layout.latents
        }

    def shown(self) -> dict[str, Tensor]:
        """Which entries no mask hides, for latents with a mask, (num_data, *plates, *event)."""
        return {
            name: self.by_datum(value.unsqueeze(0), name)[0]
            for name, value in visible_latents(
                self.lvm, self.data.x, self.layout
            ).items()
        }

    def means(self, num_samples: int) -> dict[str, Tensor]:
        """E_q[z | x] by latent, shape (num_data, *plates, *event)."""
        means = self.over_draws(
            lambda size: posterior_mean(
                self.lvm, self.data.x, size, layout=self.layout
            ),
            num_samples,
        )
        return {
            name: self.by_datum(value.unsqueeze(0), name)[0]
            for name, value in means.items()
        }

    def spread(self, num_samples: int, shown: dict[str, Tensor]) -> dict[str, Tensor]:
        """Var_x E_q[z | x] by latent; empty if a latent has no mean."""
        try:
            first, second = (self.means(num_samples) for _ in range(2))
        except ContractError:
            return {}
        return {
            name: spread(
                self.used(value), self.used(second[name]), shown.get(name)
            ).cpu()
            for name, value in first.items()
            if not _is_imputed(name, self.layout)
        }

    def information(self, latents: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """The bounds on the information of every draw, each of shape (num_samples, num_data).

        None if the guide has no density at given latents.
        """
        below, above, done = [], [], 0
        # (num_samples · num_data, ...)
        rows = {
            name: value.reshape(-1, *value.shape[2:]) for name, value in latents.items()
        }
        size = max(1, _PAIRS // self.layout.num_data)
        for part in zip(*(value.split(size) for value in rows.values()), strict=True):
            try:
                log_q = self._density(dict(zip(rows, part, strict=True)))
            except ContractError:
                return None
            low, high = _bounds(log_q, done)
            below.append(low)
            above.append(high)
            done += len(log_q)
        num_data = next(iter(latents.values())).shape[1]
        return torch.cat(below).reshape(-1, num_data), torch.cat(above).reshape(
            -1, num_data
        )

    def _density(self, latents: dict[str, Tensor]) -> Tensor:
        """log q(z | x) of every row of latents and every used datum, shape (rows, num_data)."""
        at_all = {
            name: value.unsqueeze(1)
            .expand(-1, self.layout.num_data, *value.shape[1:])
            .movedim(1, self.layout.data_axes[name])
            for name, value in latents.items()
        }
        log_q = guide_log_prob(self.lvm, self.data.x, at_all, layout=self.layout)
        return self.used(log_q, 1)


def _bounds(log_q: Tensor, done: int) -> tuple[Tensor, Tensor]:
    """Both estimates of the information of each draw, each of shape (rows,).

    Arguments:
        log_q: log q(z | x) of every draw and datum, shape (rows, num_data).
        done: number of earlier draws; draw i belongs to datum i modulo num_data.
    """
    num_data = log_q.shape[1]
    own = torch.arange(done, done + len(log_q), device=log_q.device) % num_data
    own = own.unsqueeze(-1)
    numerator = log_q.gather(1, own).squeeze(-1)
    below = numerator - log_q.logsumexp(-1) + math.log(num_data)
    others = log_q.scatter(1, own, -math.inf)
    return below, numerator - others.logsumexp(-1) + math.log(num_data - 1)


def moments(draws: Tensor, shown: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance over draws and data, without hidden entries."""
    flat = draws.double().flatten(0, 1)
    if shown is None:
        return flat.mean(0).cpu(), flat.var(0).cpu()
    seen = shown.expand(draws.shape).flatten(0, 1)
    count = seen.sum(0)
    mean = torch.where(seen, flat, 0.0).sum(0) / count
    variance = torch.where(seen, (flat - mean).square(), 0.0).sum(0) / (count - 1)
    return mean.cpu(), variance.cpu()


def _is_imputed(name: str, layout: Layout) -> bool:
    """Whether a latent stands for missing data of a site (``obs_mask``) and is not a code."""
    site = name.removesuffix("_unobserved")
    return site != name and f"{site}_observed" in layout.observed


def spread(first: Tensor, second: Tensor, shown: Tensor | None) -> Tensor:
    """Var_x E_q[z | x] without bias, as the covariance of two independent estimates of the mean.

    It is NaN for fewer than two data.
    """
    if shown is None:
        shown = torch.ones_like(first, dtype=torch.bool)
    count = shown.sum(0)
    deviations = []
    for means in (first, second):
        mean = torch.where(shown, means, 0.0).sum(0) / count
        deviations.append(torch.where(shown, means - mean, 0.0).double())
    return torch.where(
        count > 1, (deviations[0] * deviations[1]).sum(0) / (count - 1), torch.nan
    )
