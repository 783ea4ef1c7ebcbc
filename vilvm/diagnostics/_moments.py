"""Means and standard deviations of a guide's draws, plain and weighted, with standard errors.

For draws z₁ … z_S of a component, with weights w₁ … w_S that sum to one, m̂ = Σ wₛ zₛ and ŝ² = Σ
wₛ (zₛ − m̂)², one draw adds

    wₛ (zₛ − m̂) / ŝ − (zₛ − z̄) / (S ŝ)                        to the shift (m̂ − z̄) / ŝ,
    ((zₛ − z̄)² / sd² − 1) / (2 S) − wₛ ((zₛ − m̂)² / ŝ² − 1) / 2    to log (sd / ŝ),

so that the root of the sum of their squares is a standard error. Both sides use the same draws, so
it is zero where all weights are equal. A label is described by probabilities (see ``_labels``):
its shift is m̂ − z̄, and its ratio is one. Entries of a latent that a mask hides have no
posterior; they are set to a constant.

Reference: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.random import seeded
from vilvm.data.tensors import tensors_of
from vilvm.diagnostics._components import components, runnable
from vilvm.diagnostics._labels import discrete_latents, indicators, label_names, pairs
from vilvm.diagnostics._tail import good_k, tail_shape
from vilvm.diagnostics.pareto_k import JOINT_ROWS
from vilvm.diagnostics.psis import psis
from vilvm.weights import Layout, weight_chunks
from vilvm.weights.generated_quantities import replay
from vilvm.weights.prepared import Part
from vilvm.weights.simulation import visible_latents

__all__ = ["KEPT", "DrawnMoments", "Moments", "weighted_moments"]

KEPT = 100_000_000  # draws × components held at a time
_WORKED = 4_000_000  # draws × components processed at a time


class Moments(NamedTuple):
    """Moments of R data, or of all jointly if R = 1, and of K components; each has shape (R, K).

    Arguments:
        mean: mean of the draws; NaN where one is not finite.
        sd: standard deviation of the draws; zero where all are equal.
        corrected_mean: m̂.
        corrected_sd: ŝ.
        shift_se: standard error of (m̂ − mean) / ŝ, or of m̂ − mean for a probability.
        ratio_se: standard error of sd / ŝ.
        k: the larger k̂ of w and w (z − m̂)²; that of w |z − m̂|, for the mean, lies between.
    """

    mean: Tensor
    sd: Tensor
    corrected_mean: Tensor
    corrected_sd: Tensor
    shift_se: Tensor
    ratio_se: Tensor
    k: Tensor


class DrawnMoments:
    """The moments of a pair on one batch, in evaluation mode."""

    def __init__(self, part: Part):
        self.part, self.layout = part, part.layout
        lvm, batch, layout = part.lvm, part.batch, part.layout
        # If the data share a latent, all latents of single data are components like any other.
        self.joint_layout = layout
        if not layout.local:
            self.joint_layout = layout._replace(local=False, data_axes={})
        few = next(weight_chunks(lvm, batch, 2, 2, layout=layout))
        self.indices = None
        if layout.local:
            self.indices = few.indices
        self._runnable = runnable(lvm, batch)
        self._replayed = None
        if few.latents:
            self._replayed = replay(self._runnable, batch, few.latents, layout=layout)
        self._shown = visible_latents(lvm, batch, layout)
        self._labels = discrete_latents(lvm, batch, layout)
        values, where = self._values(few.latents)
        names, probabilities = label_names(values, self._labels, where)
        joint_names = pairs(values, self._labels, where)[1]
        self.names = names + joint_names
        self.probabilities = torch.cat(
            [probabilities, torch.ones(len(joint_names), dtype=torch.bool)]
        )

    def __call__(self, num_samples: int, rows: Tensor | None = None) -> Moments:
        """The moments of `num_samples` new draws, for all data or the given rows.

        If there are too many components to hold at once, the same draws are made again for each
        block of components.
        """
        device = tensors_of(self.part.batch)[0].device
        seed, found, smoothed = int(torch.randint(2**62, ())), [], None
        num_data = 1
        if self.layout.local:
            num_data = self.layout.num_data
            if rows is not None:
                num_data = len(rows)
        width = max(1, KEPT // (num_samples * num_data))
        for start in range(0, max(len(self.names), 1), width):
            with seeded(seed, device):
                blocks = list(
                    self._draws(num_samples, slice(start, start + width), rows)
                )
            log_w, z = (torch.cat(column) for column in zip(*blocks, strict=True))
            smoothed = smoothed or psis(log_w)
            probable = self.probabilities[start : start + width]
            found.append(
                weighted_moments(
                    log_w, smoothed.log_weights.exp(), smoothed.k, z, probable
                )
            )
        return Moments(*(torch.cat(column, 1) for column in zip(*found, strict=True)))

    def _draws(
        self, num_samples: int, columns: slice, rows: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Log-weights (S, R) and components (S, R, K), a chunk of draws at a time."""
        chunk = self._samples_in_a_pass()
        batch, layout = self.part.batch, self.layout
        for weights in weight_chunks(
            self.part.lvm, batch, num_samples, chunk, layout=layout
        ):
            log_w = weights.log_weight
            if not layout.local:
                log_w = log_w[:, None]
            values, where = self._values(weights.latents)
            z = log_w.new_zeros(*log_w.shape, 0)
            if values:
                z = components(indicators(values, self._labels), where)
            together, _ = pairs(values, self._labels, where)
            if together is not None:
                z = torch.cat([z, together], -1)
            precision = torch.float64
            if all(v.dtype != torch.float64 for v in values.values()):
                precision = torch.float32
            z = z[..., columns]
            if rows is not None:
                log_w, z = log_w[:, rows.to(z.device)], z[:, rows.to(z.device)]
            # copied, because a view would keep all columns in memory
            yield log_w.cpu(), z.to(precision, copy=True).cpu()

    def _samples_in_a_pass(self) -> int:
        num_data, width = max(self.layout.num_data, 1), max(len(self.names), 1)
        if self.layout.local:
            return max(
                1, min(self.part.samples_in_a_pass(), KEPT // 10 // (width * num_data))
            )
        return max(1, min(JOINT_ROWS // num_data, KEPT // 10 // width))

    def _values(self, latents: dict[str, Tensor]) -> tuple[dict[str, Tensor], Layout]:
        """The latents and the values of ``pyro.deterministic``, and their layout."""
        if self._replayed is None or not self._replayed.deterministics:
            return self._without_hidden(latents), self.joint_layout
        replayed = self._replayed
        if next(iter(latents.values())).shape[0] != 2:
            replayed = replay(
                self._runnable, self.part.batch, latents, layout=self.layout
            )
        values = {**self._without_hidden(latents), **replayed.deterministics}
        if not self.layout.local:
            return values, self.joint_layout
        axes = replayed.data_axes
        own = {n: v for n, v in values.items() if n in axes}
        return own, self.layout._replace(data_axes=axes)

    def _without_hidden(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """The latents, with zeros in the entries that a mask hides."""
        shown = {
            n: torch.where(self._shown[n], latents[n], 0)
            for n in self._shown
            if n in latents
        }
        return {**latents, **shown}


def weighted_moments(
    log_w: Tensor, w: Tensor, k: Tensor, z: Tensor, probable: Tensor
) -> Moments:
    """Moments from draws; computed block by block.

    Arguments:
        log_w: raw log-weights, shape (S, R).
        w: smoothed weights, shape (S, R).
        k: their k̂, shape (R,).
        z: components, shape (S, R, K).
        probable: which components are probabilities, shape (K,).
    """
    num_samples, data, width = z.shape
    if not width:
        return Moments(
            *(z.new_zeros(data, 0, dtype=torch.float64) for _ in Moments._fields)
        )
    raw = (log_w.double() - log_w.double().logsumexp(0)).exp().nan_to_num()
    columns = max(1, min(width, _WORKED // num_samples))
    rows = max(1, _WORKED // (num_samples * columns))
    blocks = []
    for i in (slice(start, start + rows) for start in range(0, data, rows)):
        across = [
            _of_block(
                raw[:, i, None], w[:, i, None], k[i, None], z[:, i, j], probable[j]
            )
            for j in (
                slice(start, start + columns) for start in range(0, width, columns)
            )
        ]
        blocks.append([torch.cat(column, 1) for column in zip(*across, strict=True)])
    return Moments(*(torch.cat(column) for column in zip(*blocks, strict=True)))


def _of_block(
    raw: Tensor, w: Tensor, k: Tensor, z: Tensor, probable: Tensor
) -> Moments:
    z = z.double()
    finite = z.isfinite().all(0)
    z = torch.where(finite, z, 0.0)
    mean = z.mean(0)
    sd = z.std(0, correction=0)
    constant = sd <= 1e-6 * z.abs().amax(0)  # differences are rounding errors
    m = (w * z).sum(0)
    s = (w * (z - m).square()).sum(0).sqrt()
    unit = torch.where(probable, 1.0, s)
    on_shift = (w * (z - m) - (z - mean) / len(z)) / unit
    plain = ((z - mean).square() / sd.square() - 1) / 2 / len(z)
    weighted = w * ((z - m).square() / s.square() - 1) / 2
    on_ratio = plain - weighted
    # An indicator has no tail of its own.
    shape = torch.where(probable, k, torch.maximum(k, _shape(raw, (z - m).square(), k)))
    ratio_se = torch.where(probable, 0.0, on_ratio.square().sum(0).sqrt() * sd / s)
    found = Moments(mean, sd, m, s, on_shift.square().sum(0).sqrt(), ratio_se, shape)
    of_constant = (mean, 0.0, mean, 0.0, 0.0, 0.0, k)
    return Moments(
        *(
            torch.where(finite, torch.where(constant, value, x), torch.nan)
            for value, x in zip(of_constant, found, strict=True)
        )
    )


def _shape(w: Tensor, h: Tensor, k: Tensor) -> Tensor:
    """k̂ of w h; k̂ of w where h itself has a heavy tail, which the weights do not cause."""
    shape = tail_shape((w * h).flatten(1)).reshape(h.shape[1:])
    heavy = shape > good_k(len(h))
    if heavy.any():
        own = tail_shape(h[:, heavy])
        shape[heavy] = torch.where(
            own > good_k(len(h)), k.expand_as(shape)[heavy], shape[heavy]
        )
    return shape
