"""Pictures from a trained model. Each function returns a matplotlib Figure.

`data` is what ``vilvm.fit`` and ``vilvm.evaluate`` take; a datum is shown as a picture of the
data's ``image_shape``. The figures use matplotlib's object interface: they open no window and
leave ``pyplot`` alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_positive, check_seed
from vilvm._runtime.random import seeded
from vilvm.data.data import as_data
from vilvm.evaluation.interpolation import Path, interpolate, line
from vilvm.lvm import LatentVariableModel, device_of
from vilvm.plots._grid import grid
from vilvm.plots._model import spread, vector_latent
from vilvm.weights import find_layout, posterior_mean, sample
from vilvm.weights.prediction import predicted_means

__all__ = [
    "interpolations",
    "interpolations_by_model",
    "manifold",
    "picture_rows",
    "prior_samples",
    "reconstructions",
    "restorations",
    "samples_by_model",
    "traversal",
]


def picture_rows(
    rows: Mapping[str, Tensor], image_shape: tuple[int, ...] | None, title: str = ""
) -> Figure:
    """Rows of pictures, each with its name at the left.

    Arguments:
        rows: pictures by name, shape (num_pictures, ...) each; values in [0, 1].
        image_shape: (height, width) or (channels, height, width) of a picture; None for strips
            one pixel high.
        title: above the rows.

    Returns:
        The figure.

    Raises:
        ValueError: there is no row, or rows have different numbers of pictures.

    Examples:
        >>> import torch
        >>> from vilvm.plots import picture_rows
        >>> figure = picture_rows({"data": torch.rand(3, 4), "model": torch.rand(3, 4)}, (2, 2))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['data', 'model']
    """
    lengths = {len(row) for row in rows.values()}
    if len(lengths) != 1:
        raise ValueError(
            "picture_rows: rows must have as many pictures each; got "
            f"{ ({n: len(r) for n, r in rows.items()}) }."
        )
    pictures = torch.cat(
        [row.detach().cpu().reshape(len(row), -1) for row in rows.values()]
    )
    return grid(pictures, lengths.pop(), image_shape, list(rows), title)


def reconstructions(lvm: LatentVariableModel, data: Any, count: int = 12) -> Figure:
    """Data, and below each E[x | z] at the posterior mean of z.

    Arguments:
        lvm: the model and guide.
        data: the data, of which `count` at equal distances are shown.
        count: number of data.

    Returns:
        The figure.

    Raises:
        ValueError: `count` is below 1.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.plots import reconstructions
        >>> x = torch.rand(9, 6).round()
        >>> len(reconstructions(VAE(data_dim=6, latent_dim=2), x, count=3).axes)
        1
    """
    count = check_number("reconstructions: count", count)
    seen = spread(data, count).fixed()
    rows = {"data": seen.x, "model": _decoded(lvm, posterior_mean(lvm, seen.x))}
    return picture_rows(rows, seen.image_shape, "Reconstructions")


def prior_samples(
    lvm: LatentVariableModel, data: Any, count: int = 64, seed: int = 0
) -> Figure:
    """E[x | z] for z drawn from the prior.

    Arguments:
        lvm: the model and guide.
        data: gives the shapes of the model's plates and of a picture.
        count: number of draws.
        seed: of the draws.

    Returns:
        The figure.

    Raises:
        ValueError: `count` is below 1, or `seed` is not a seed.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.plots import prior_samples
        >>> x = torch.rand(9, 6).round()
        >>> len(prior_samples(VAE(data_dim=6, latent_dim=2), x, count=4).axes)
        1
    """
    count = check_number("prior_samples: count", count)
    seed = check_seed("prior_samples: seed", seed)
    drawn = _prior_means(lvm, data, count, seed)
    columns = round(math.sqrt(count))
    shape = as_data(data).image_shape
    return grid(drawn, columns, shape, None, "Samples from the prior (means)")


def interpolations(
    lvm: LatentVariableModel,
    data: Any,
    pairs: int = 6,
    steps: int = 11,
    path: Path = line,
) -> Figure:
    """E[x | z] along a path between the posterior means of two data, one pair a row.

    Arguments:
        lvm: the model and guide.
        data: the data, of which 2 `pairs` at equal distances are the ends.
        pairs: number of pairs of data.
        steps: points on each path, both ends included.
        path: the path in latent space; see ``vilvm.evaluation.interpolation``.

    Returns:
        The figure.

    Raises:
        ValueError: there are fewer than two data, `pairs` is below 1 or `steps` below 2.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.plots import interpolations
        >>> x = torch.rand(9, 6).round()
        >>> len(interpolations(VAE(data_dim=6, latent_dim=2), x, pairs=2).axes)
        1
    """
    pairs = check_number("interpolations: pairs", pairs)
    steps = check_number("interpolations: steps", steps, 2)
    first, second, shape = _ends(data, pairs)
    decoded = interpolate(lvm, first, second, steps, path).reshape(
        len(first), steps, -1
    )
    left, right = (end.reshape(len(first), 1, -1) for end in (first, second))
    rows = torch.cat([left, decoded, right], 1).flatten(0, 1)
    title = "Between two data: the data at the ends, the model between"
    return grid(rows, steps + 2, shape, None, title)


def interpolations_by_model(
    models: Mapping[str, tuple[LatentVariableModel, Path]], data: Any, steps: int = 11
) -> Figure:
    """Interpolations between the same two data, one model and path a row.

    The last row, a cross-fade of the pixels, is the baseline.

    Arguments:
        models: by name, a model and the path in its latent space.
        data: the first and last of the data are the ends.
        steps: points on each path, both ends included.

    Returns:
        The figure.

    Raises:
        ValueError: there are fewer than two data, or `steps` is below 2.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation.interpolation import line
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.plots import interpolations_by_model
        >>> x = torch.rand(9, 6).round()
        >>> figure = interpolations_by_model({"VAE": (VAE(6, 2), line)}, x)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['VAE', 'pixels']
    """
    steps = check_number("interpolations_by_model: steps", steps, 2)
    first, second, shape = _ends(data, 1)
    rows = {
        name: interpolate(lvm, first, second, steps, path)[0]
        for name, (lvm, path) in models.items()
    }
    rows["pixels"] = line(first, second, steps)[0]
    ended = {
        name: torch.cat([first.flatten(1), row.flatten(1), second.flatten(1)])
        for name, row in rows.items()
    }
    return picture_rows(ended, shape, "Between two data: the data at the ends")


def samples_by_model(
    models: Mapping[str, LatentVariableModel], data: Any, count: int = 16, seed: int = 0
) -> Figure:
    """E[x | z] for z drawn from each model's prior, one model a row, below a row of data.

    Arguments:
        models: by name.
        data: the data, of which `count` at equal distances are shown.
        count: number of draws of each model.
        seed: of the draws.

    Returns:
        The figure.

    Raises:
        ValueError: `count` is below 1, or `seed` is not a seed.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.plots import samples_by_model
        >>> x = torch.rand(9, 6).round()
        >>> figure = samples_by_model({"VAE": VAE(6, 2)}, x, count=3)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['data', 'VAE']
    """
    count = check_number("samples_by_model: count", count)
    seed = check_seed("samples_by_model: seed", seed)
    shown = spread(data, count).fixed()
    rows = {"data": shown.x}
    for name, lvm in models.items():
        rows[name] = _prior_means(lvm, shown, len(shown), seed)
    return picture_rows(rows, shown.image_shape, "Draws from the priors (means)")


def restorations(lvm: LatentVariableModel, data: Any, count: int = 12) -> Figure:
    """Corrupted data, what a denoising model restores from them, and the originals.

    Arguments:
        lvm: a model and guide of pairs (corrupted, clean).
        data: such pairs, as the transform ``Corrupted`` makes them.
        count: number of data.

    Returns:
        The figure.

    Raises:
        ValueError: the data are not pairs, or `count` is below 1.

    Examples:
        >>> import torch
        >>> from vilvm.models.denoising_autoencoder import DenoisingAutoencoder
        >>> from vilvm.plots import restorations
        >>> x = torch.rand(9, 6)
        >>> figure = restorations(DenoisingAutoencoder(6, 2, hidden=(4,)), (0.5 * x, x), count=3)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['corrupted', 'restored', 'original']
    """
    count = check_number("restorations: count", count)
    seen = spread(data, count).fixed()
    if not (isinstance(seen.x, tuple | list) and len(seen.x) == 2):
        raise ValueError(
            "restorations: the data must be pairs (corrupted, clean), as the transform Corrupted "
            "makes them."
        )
    corrupted, clean = seen.x
    rows = {
        "corrupted": corrupted,
        "restored": _decoded(lvm, posterior_mean(lvm, seen.x)),
        "original": clean,
    }
    return picture_rows(rows, seen.image_shape, "Restorations")


def manifold(lvm: LatentVariableModel, data: Any, side: int = 20) -> Figure:
    """E[x | z] on a grid of a two-dimensional latent.

    The grid points are quantiles of the standard normal distribution: between neighbours the
    prior probability is equal.

    Arguments:
        lvm: the model and guide.
        data: gives the shape of a picture.
        side: points along each axis.

    Returns:
        The figure.

    Raises:
        ValueError: the latent is not two-dimensional, or `side` is below 1.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.plots import manifold
        >>> x = torch.rand(9, 6).round()
        >>> len(manifold(VAE(data_dim=6, latent_dim=2), x, side=3).axes)
        1
    """
    side = check_number("manifold: side", side)
    name, codes = vector_latent(posterior_mean(lvm, spread(data, 1).fixed().x))
    if codes.shape[-1] != 2:
        raise ValueError(
            f"manifold: the latent {name!r} has {codes.shape[-1]} dimensions; a grid needs 2."
        )
    quantiles = torch.special.ndtri((torch.arange(side) + 0.5) / side).to(codes)
    down, across = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    decoded = _decoded(lvm, {name: torch.stack([across, down], -1).reshape(-1, 2)})
    title = "The latent plane (equal steps of prior probability)"
    return grid(decoded, side, as_data(data).image_shape, None, title, gap=0.0)


def traversal(
    lvm: LatentVariableModel,
    data: Any,
    *,
    dimensions: Sequence[int] | None = None,
    steps: int = 11,
    reach: float = 2.5,
) -> Figure:
    """E[x | z] while one dimension of z moves, one dimension a row; the datum is at the left.

    z starts at the posterior mean of the datum. The moving dimension takes equal steps from
    −`reach` to `reach`; the others stay.

    Arguments:
        lvm: the model and guide; its only latent is a vector for each datum.
        data: of which the first is the datum.
        dimensions: which dimensions move, from 0, in this order; all by default.
        steps: values of the moving dimension.
        reach: the largest value, in units of the latent: standard deviations of a prior N(0, I).

    Returns:
        The figure.

    Raises:
        ValueError: the latent is not a vector, it lacks one of the dimensions, or a number is out
            of range.

    Reference: beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework,
    Higgins et al., 2017.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.plots import traversal
        >>> figure = traversal(VAE(data_dim=6, latent_dim=2), torch.rand(9, 6).round())
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['z1', 'z2']
    """
    steps = check_number("traversal: steps", steps, 2)
    reach = check_positive("traversal: reach", reach)
    seen = as_data(data).subset(slice(0, 1)).fixed()
    name, code = vector_latent(posterior_mean(lvm, seen.x))
    moving = range(code.shape[1]) if dimensions is None else dimensions
    wrong = [i for i in moving if i not in range(code.shape[1])]
    if wrong:
        raise ValueError(
            f"traversal: latent {name!r} has dimensions 0 to {code.shape[1] - 1}, not {wrong[0]}."
        )
    rows = {}
    for i in moving:
        z = code.repeat(steps, 1)
        z[:, i] = torch.linspace(-reach, reach, steps)
        decoded = _decoded(lvm, {name: z}).reshape(steps, -1)
        rows[f"{name}{i + 1}"] = torch.cat([seen.x.reshape(1, -1), decoded])
    title = f"The datum, and one dimension moved from −{reach:g} to {reach:g}"
    return picture_rows(rows, seen.image_shape, title)


def _ends(data: Any, pairs: int) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
    """Data to interpolate between, and their image shape."""
    ends = spread(data, 2 * pairs).fixed()
    if len(ends) < 2:
        raise ValueError(f"interpolations: needs at least two data; got {len(ends)}.")
    half = len(ends) // 2
    return ends.x[:half], ends.x[half : 2 * half], ends.image_shape


def _decoded(lvm: LatentVariableModel, latents: dict[str, Tensor]) -> Tensor:
    """E[x | z] of the first observed site."""
    return next(iter(predicted_means(lvm, latents).values()))


def _prior_means(lvm: LatentVariableModel, data: Any, count: int, seed: int) -> Tensor:
    """E[x | z] of the first observed site for z drawn from the prior."""
    with seeded(seed, device_of(lvm)):
        draws = sample(lvm, count, mean=True)
        return draws[find_layout(lvm, spread(data, 1).fixed().x).observed[0]]
