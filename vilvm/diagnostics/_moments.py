"""Means and standard deviations of a guide's draws, plain and weighted, and how well either is
known.

Of draws z₁ … z_S of a component, their weights w₁ … w_S that sum to one, m̂ = Σ wₛ zₛ and ŝ² = Σ
wₛ (zₛ − m̂)², one draw adds

    wₛ (zₛ − m̂) / ŝ − (zₛ − z̄) / (S ŝ)                        to the shift (m̂ − z̄) / ŝ,
    ((zₛ − z̄)² / sd² − 1) / (2 S) − wₛ ((zₛ − m̂)² / ŝ² − 1) / 2    to log (sd / ŝ),

so that the root of the sum of their squares is a standard error: both sides are of the same draws,
so where all weights are equal it is zero. A label is measured by probabilities (see ``labels``),
whose shift m̂ − z̄ is in their own unit, and whose ratio is one. What a mask of the model hides of
a latent has no posterior, and stands as a constant.

Reference: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.random import seeded
from vilvm.data.tensors import tensors_of
from vilvm.diagnostics._components import components, runnable
from vilvm.diagnostics._labels import discrete_latents, indicators, label_names, pairs
from vilvm.diagnostics._tail import tail_shape
from vilvm.diagnostics.pareto_k import JOINT_ROWS, good_k, psis
from vilvm.evaluation.evaluate import samples_in_a_pass
from vilvm.lvm import LatentVariableModel
from vilvm.weights import Layout, weight_chunks
from vilvm.weights.generated_quantities import replay
from vilvm.weights.simulation import visible_latents

__all__ = ["KEPT", "DrawnMoments", "Moments"]

KEPT = 100_000_000  # draws times components that are held at a time
_WORKED = 4_000_000  # of these, that are worked on at a time


class Moments(NamedTuple):
    """Of the draws and of the weighted draws, each of shape (R, K): R data, or 1 for all together,
    and K components.

    Arguments:
        mean, sd: of the draws; NaN where one is not finite, sd zero where none differs from
            another.
        corrected_mean, corrected_sd: m̂ and ŝ.
        shift_se, ratio_se: standard errors of (m̂ − mean) / ŝ, of m̂ − mean for a probability, and
            of sd / ŝ.
        k: the larger k̂ of w and w (z − m̂)²; that of w |z − m̂|, which is what the mean is of,
            lies between.
    """

    mean: Tensor
    sd: Tensor
    corrected_mean: Tensor
    corrected_sd: Tensor
    shift_se: Tensor
    ratio_se: Tensor
    k: Tensor


class DrawnMoments:
    """The moments of a pair on one batch.

    Arguments:
        lvm: the model and guide, in evaluation mode.
        batch: what both are called with.
        layout: the layout of this very batch.
    """

    def __init__(self, lvm: LatentVariableModel, batch: Any, layout: Layout):
        self.lvm, self.batch, self.layout = lvm, batch, layout
        # Of a shared latent's model the data's own latents are components like any other, all of
        # them.
        self.as_one = layout if layout.local else layout._replace(local=False, data_axes={})
        few = next(weight_chunks(lvm, batch, 2, 2, layout=layout))
        self.indices = few.indices if layout.local else None
        self._runs = runnable(lvm, batch)
        self._made = replay(self._runs, batch, few.latents, layout=layout) if few.latents else None
        self._shown = visible_latents(lvm, batch, layout)
        self._labels = discrete_latents(lvm, batch, layout)
        values, where = self._values(few.latents)
        names, probabilities = label_names(values, self._labels, where)
        together = pairs(values, self._labels, where)[1]
        self.names = names + together
        self.probabilities = torch.cat(
            [probabilities, torch.ones(len(together), dtype=torch.bool)]
        )

    def __call__(self, num_samples: int, keep: Tensor | None = None) -> Moments:
        """The moments of that many new draws, from torch's generator; of the data in `keep` only,
        if given.

        Where there are too many components to be held at once, the same draws are made as often as
        is needed.
        """
        device = tensors_of(self.batch)[0].device
        seed, found, smoothed = int(torch.randint(2**62, ())), [], None
        data = (
            (len(keep) if keep is not None else self.layout.num_data) if self.layout.local else 1
        )
        width = max(1, KEPT // (num_samples * data))
        for start in range(0, max(len(self.names), 1), width):
            with seeded(seed, device):
                parts = list(self._draws(num_samples, slice(start, start + width), keep))
            log_w, z = (torch.cat(column) for column in zip(*parts, strict=True))
            smoothed = psis(log_w) if smoothed is None else smoothed
            probable = self.probabilities[start : start + width]
            found.append(_moments(log_w, smoothed.log_weights.exp(), smoothed.k, z, probable))
        return Moments(*(torch.cat(column, 1) for column in zip(*found, strict=True)))

    def _draws(
        self, num_samples: int, columns: slice, keep: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Log-weights (S, R) and components (S, R, K), some at a time."""
        local, num_data = self.layout.local, max(self.layout.num_data, 1)
        rows = (
            samples_in_a_pass(self.lvm, self.batch, self.layout) * num_data
            if local
            else JOINT_ROWS
        )
        components_in_all = max(len(self.names), 1) * (num_data if local else 1)
        chunk = max(1, min(rows // num_data, KEPT // 10 // components_in_all))
        for weights in weight_chunks(self.lvm, self.batch, num_samples, chunk, layout=self.layout):
            log_w = weights.log_weight if local else weights.log_weight[:, None]
            values, where = self._values(weights.latents)
            z = (
                components(indicators(values, self._labels), where)
                if values
                else log_w.new_zeros(*log_w.shape, 0)
            )
            together, _ = pairs(values, self._labels, where)
            z = (z if together is None else torch.cat([z, together], -1))[..., columns]
            single = all(v.dtype != torch.float64 for v in values.values())
            picked = slice(None) if keep is None else keep.to(z.device)
            # a view would keep all columns
            z = z[:, picked].to(torch.float32 if single else torch.float64, copy=True)
            yield log_w[:, picked].cpu(), z.cpu()

    def _values(self, latents: dict[str, Tensor]) -> tuple[dict[str, Tensor], Layout]:
        """The latents and what ``pyro.deterministic`` makes of them, which is often what a reader
        wants to know; and where their data stand.
        """
        if self._made is None or not self._made.deterministics:
            return self._of_posterior(latents), self.as_one
        made = self._made
        if next(iter(latents.values())).shape[0] != 2:
            made = replay(self._runs, self.batch, latents, layout=self.layout)
        values = {**self._of_posterior(latents), **made.deterministics}
        if not self.layout.local:
            return values, self.as_one
        return {n: v for n, v in values.items() if n in made.data_axes}, self.layout._replace(
            data_axes=made.data_axes
        )

    def _of_posterior(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """The latents, what a mask hides of them put at zero."""
        return {
            n: torch.where(self._shown[n], v, 0) if n in self._shown else v
            for n, v in latents.items()
        }


def _moments(log_w: Tensor, w: Tensor, k: Tensor, z: Tensor, probable: Tensor) -> Moments:
    """Of raw log-weights (S, R), smoothed weights (S, R), their k̂ (R,) and components (S, R, K),
    some of them at a time.
    """
    num_samples, data, width = z.shape
    raw = (log_w.double() - log_w.double().logsumexp(0)).exp().nan_to_num()
    columns = max(1, min(width, _WORKED // num_samples))
    rows = max(1, _WORKED // (num_samples * columns))
    blocks = []
    for i in (slice(a, a + rows) for a in range(0, data, rows)):
        across = [
            _of_block(
                raw[:, i, None],
                w[:, i, None],
                k[i, None],
                z[:, i, a : a + columns],
                probable[a : a + columns],
            )
            for a in range(0, width, columns)
        ]
        if not across:
            return Moments(*(z.new_zeros(data, 0, dtype=torch.float64) for _ in Moments._fields))
        blocks.append([torch.cat(column, 1) for column in zip(*across, strict=True)])
    return Moments(*(torch.cat(column) for column in zip(*blocks, strict=True)))


def _of_block(raw: Tensor, w: Tensor, k: Tensor, z: Tensor, probable: Tensor) -> Moments:
    z = z.double()
    finite = z.isfinite().all(0)
    z = torch.where(finite, z, 0.0)
    mean, sd = z.mean(0), z.std(0, correction=0)
    constant = sd <= 1e-6 * z.abs().amax(0)  # of which rounding would be judged
    m = (w * z).sum(0)
    s = (w * (z - m).square()).sum(0).sqrt()
    unit = torch.where(probable, 1.0, s)
    on_shift = (w * (z - m) - (z - mean) / len(z)) / unit
    on_ratio = ((z - mean).square() / sd.square() - 1) / 2 / len(z) - w * (
        (z - m).square() / s.square() - 1
    ) / 2
    # an indicator has no tail of its own
    shape = torch.where(probable, k, torch.maximum(k, _shape(raw, (z - m).square(), k)))
    ratio_se = torch.where(probable, 0.0, on_ratio.square().sum(0).sqrt() * sd / s)
    found = Moments(mean, sd, m, s, on_shift.square().sum(0).sqrt(), ratio_se, shape)
    still = Moments(
        *(
            torch.where(constant, value, x)
            for value, x in zip((mean, 0.0, mean, 0.0, 0.0, 0.0, k), found, strict=True)
        )
    )
    return Moments(*(torch.where(finite, x, torch.nan) for x in still))


def _shape(w: Tensor, h: Tensor, k: Tensor) -> Tensor:
    """k̂ of w h; that of w alone where h has a heavy tail without it, for then the weights are not
    to blame.
    """
    shape = tail_shape((w * h).flatten(1)).reshape(h.shape[1:])
    heavy = shape > good_k(len(h))
    if heavy.any():
        own = tail_shape(h[:, heavy])
        shape[heavy] = torch.where(own > good_k(len(h)), k.expand_as(shape)[heavy], shape[heavy])
    return shape
