"""Pictures of a trained model. Each function returns a matplotlib Figure, and works for any model of one vector-valued latent.

`data` are those that ``vilvm.fit`` and ``vilvm.evaluate`` take; rows are shown as pictures of their ``image_shape``.

The backend is matplotlib's object interface, so no window is opened and no global state (``pyplot``) is touched.
"""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vilvm.data import Data, as_data
from vilvm.lvm import LatentVariableModel
from vilvm.weights import layout, posterior_mean, predict, sample

__all__ = ["elbo_curves", "interpolations", "latent_scatter", "manifold", "prior_samples", "reconstructions"]

_INK, _SECOND = "#1f4e79", "#c2571a"


def reconstructions(lvm: LatentVariableModel, data: Any, count: int = 12) -> Figure:
    """Data above, and below them E[x | z] at the posterior mean of z."""
    seen = _spread(data, count).fixed()
    latents = posterior_mean(lvm, seen.x)
    rows = [seen.x, _pictures(lvm, latents)]
    return _grid(torch.cat([r.reshape(len(seen), -1) for r in rows]), count, seen, ["data", "model"], "Reconstructions")


def prior_samples(lvm: LatentVariableModel, data: Any, count: int = 64, seed: int = 0) -> Figure:
    """E[x | z] for z drawn from the prior; `data` say what a picture looks like."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = next(iter(_observed(sample(lvm, count, mean=True), lvm, data).values()))
    return _grid(drawn, round(math.sqrt(count)), as_data(data), None, "Samples from the prior (means)")


def interpolations(lvm: LatentVariableModel, data: Any, pairs: int = 6, steps: int = 11) -> Figure:
    """E[x | z] along the straight line between the posterior means of two data, a pair a row."""
    ends = _spread(data, 2 * pairs).fixed()
    if len(ends) < 2:
        raise ValueError(f"interpolations: needs at least two data; got {len(ends)}.")
    pairs = len(ends) // 2
    ends = ends.subset(slice(0, 2 * pairs))
    name, codes = _single(posterior_mean(lvm, ends.x))
    weight = torch.linspace(0, 1, steps, device=codes.device)[None, :, None]
    line = (1 - weight) * codes[:pairs, None] + weight * codes[pairs:, None]
    decoded = _pictures(lvm, {name: line.flatten(0, 1)}).reshape(pairs, steps, -1)
    first, last = (ends.x[part].reshape(pairs, 1, -1) for part in (slice(0, pairs), slice(pairs, None)))
    rows = torch.cat([first, decoded, last], 1).flatten(0, 1)
    return _grid(rows, steps + 2, ends, None, "Between two data: the data at the ends, the model between")


def elbo_curves(history: Any) -> Figure:
    """The objective and the validation ELBO, rate and distortion against epochs; `history[column]` is an array, as of ``fit``."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = history["epoch"]
    style = {"marker": "o", "markersize": 3} if len(epochs) < 30 else {}  # a line of one point would not be seen
    left.plot(epochs, history["elbo"], color=_INK, label="training (the objective)", **style)
    validation, error = history["validation_elbo"], history["validation_se"]
    if np.isfinite(validation).any():
        left.plot(epochs, validation, color=_SECOND, label="validation ± 1 SE", **style)
        left.fill_between(epochs, validation - error, validation + error, color=_SECOND, alpha=0.2, linewidth=0)
    left.set(xlabel="epoch", ylabel="ELBO (nats per datum)")
    right.plot(epochs, history["rate"], color=_INK, label="rate", **style)
    right.plot(epochs, history["distortion"], color=_SECOND, label="distortion", **style)
    right.set(xlabel="epoch", ylabel="nats per datum")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def latent_scatter(lvm: LatentVariableModel, data: Any, count: int = 3000) -> Figure:
    """Posterior means in the plane, coloured by label; of more than two dimensions, their first two principal components."""
    seen = _spread(data, count).fixed()
    _, codes = _single(posterior_mean(lvm, seen.x))
    codes = codes.cpu().double()
    names = ["z₁", "z₂"]
    if codes.shape[1] > 2:
        centred = codes - codes.mean(0)
        _, spread, axes_ = torch.linalg.svd(centred, full_matrices=False)
        share = spread.square() / spread.square().sum()
        names = [f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in range(2)]
        codes = centred @ axes_[:2].T
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    labels = None if seen.labels is None else torch.as_tensor(seen.labels).cpu()
    # One latent dimension has no second axis to spread along.
    across = codes[:, 1] if codes.shape[1] > 1 else torch.zeros(len(codes))
    points = axes.scatter(codes[:, 0], across, c=labels, cmap="tab10" if labels is not None else None, s=6, alpha=0.7, linewidths=0)
    if labels is not None:
        axes.legend(*points.legend_elements(), title="label", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel=names[0], ylabel=names[1] if codes.shape[1] > 1 else "", title="Posterior means")
    if codes.shape[1] == 1:
        axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def manifold(lvm: LatentVariableModel, data: Any, side: int = 20) -> Figure:
    """E[x | z] on a grid of a two-dimensional standard normal latent, equal prior probability between neighbours.

    Raises:
        ValueError: the latent is not two-dimensional.
    """
    name, codes = _single(posterior_mean(lvm, _spread(data, 1).fixed().x))
    if codes.shape[-1] != 2:
        raise ValueError(f"manifold: the latent {name!r} has {codes.shape[-1]} dimensions; a grid needs 2.")
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side).to(codes)
    down, across = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    decoded = _pictures(lvm, {name: torch.stack([across, down], -1).reshape(-1, 2)})
    return _grid(decoded, side, as_data(data), None, "The latent plane (equal steps of prior probability)", gap=0.0)


def _spread(data: Any, count: int) -> Data:
    """`count` data spread evenly over the set, so that a sorted one is not seen from one end only."""
    data = as_data(data)
    count = min(count, len(data))
    return data.subset(torch.linspace(0, len(data) - 1, count).long())


def _single(latents: dict[str, Tensor]) -> tuple[str, Tensor]:
    name, codes = next(iter(latents.items()))
    if len(latents) != 1 or codes.dim() != 2:
        shapes = {n: tuple(v.shape) for n, v in latents.items()}
        raise ValueError(f"This figure needs a model of one latent, a vector for each datum; this one has {shapes}.")
    return name, codes


def _pictures(lvm: LatentVariableModel, latents: dict[str, Tensor]) -> Tensor:
    return next(iter(predict(lvm, latents).values()))


def _observed(draws: dict[str, Tensor], lvm: LatentVariableModel, data: Any) -> dict[str, Tensor]:
    names = layout(lvm, _spread(data, 1).fixed().x).observed
    return {name: draws[name] for name in names}


def _grid(pictures: Any, columns: int, data: Data, rows: list[str] | None, title: str, gap: float = 0.08) -> Figure:
    """Pictures, row by row, as one image: many axes would take seconds to draw. Grey ones are dark on white."""
    shape = data.image_shape or (1, int(pictures[0].numel()))
    height, width = shape[-2:]
    channels = shape[0] if len(shape) == 3 else 1
    if channels not in (1, 3):
        raise ValueError(f"A picture has 1 or 3 channels; the image_shape of these data is {shape}.")
    tiles = pictures.detach().cpu().float().reshape(-1, channels, height, width).clamp(0, 1).movedim(1, -1).numpy()
    tiles = 1 - tiles if channels == 1 else tiles
    down = math.ceil(len(tiles) / columns)
    space = max(1, round(gap * width)) if gap else 0
    sheet = np.ones((down * (height + space) - space, columns * (width + space) - space, channels), dtype=np.float32)
    for i, tile in enumerate(tiles):
        top, left = divmod(i, columns)
        sheet[top * (height + space) :, left * (width + space) :][:height, :width] = tile
    sheet = sheet.squeeze(-1) if channels == 1 else sheet
    inches = 9.0
    figure = Figure(figsize=(inches, inches * sheet.shape[0] / sheet.shape[1] + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([(i + 0.5) * (height + space) for i in range(len(rows))] if rows else [], rows or [])
    axes.set_title(title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
