"""Draws made elsewhere: arrays by latent, read from the forms that other libraries return.

A dict of arrays (NumPyro, sbi, Stan), one array, or a ``posterior`` group (an ArviZ DataTree or
InferenceData, as PyMC returns it, or its xarray Dataset) all become float64 tensors of shape
(S, *event), the draws of one chain after those of another.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm.diagnostics._components import indexed

__all__ = ["GivenDraws", "in_chunks", "read_draws", "spaced_rows"]

_WHO = "diagnose_draws"
_LEAST = 100  # fewest draws, as for k̂
_SAMPLE_DIMS = ("chain", "draw")


class GivenDraws(NamedTuple):
    """S draws of all latents.

    Arguments:
        latents: by name, float64, shape (S, *event), chain by chain.
        log_q: log-density under the approximation that drew them, shape (S,); None if not given.
        num_chains: the number of chains; 0 if the draws are not of chains.
        discrete: a latent whose draws are integers, or "".
    """

    latents: dict[str, Tensor]
    log_q: Tensor | None
    num_chains: int
    discrete: str

    @property
    def num_draws(self) -> int:
        """S."""
        return len(next(iter(self.latents.values())))

    def thinned(self, num_draws: int) -> "GivenDraws":
        """At most `num_draws` draws, evenly spaced, as many of each chain."""
        index = spaced_rows(self.num_draws, max(self.num_chains, 1), num_draws)
        if len(index) == self.num_draws:
            return self
        log_q = self.log_q
        if log_q is not None:
            log_q = log_q[index]
        latents = {n: v[index] for n, v in self.latents.items()}
        return self._replace(latents=latents, log_q=log_q)

    def components(self) -> tuple[tuple[str, ...], Tensor]:
        """Names of the components that vary, and their draws, shape (S, K)."""
        names = [
            indexed(n, index)
            for n, v in self.latents.items()
            for index in np.ndindex(*v.shape[1:])
        ]
        z = torch.cat([v.reshape(len(v), -1) for v in self.latents.values()], 1)
        varies = (z != z[0]).any(0)
        kept = tuple(n for n, v in zip(names, varies.tolist(), strict=True) if v)
        return kept, z[:, varies]


def in_chunks(latents: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    """The draws by latent, `size` of them at a time."""
    for start in range(0, len(next(iter(latents.values()))), size):
        rows = slice(start, start + size)
        yield {name: value[rows] for name, value in latents.items()}


def spaced_rows(num_draws: int, chains: int, most: int) -> Tensor:
    """At most `most` rows of draws, evenly spaced, as many of each chain; at least one of each."""
    length = num_draws // chains
    kept = max(1, min(length, most // chains))
    of_chain = torch.linspace(0, length - 1, kept).round().long()
    return (torch.arange(chains)[:, None] * length + of_chain).flatten()


def read_draws(
    draws: Any,
    log_q: Any,
    chains: bool,
    shapes: Mapping[str, tuple[int, ...]],
    extra: frozenset[str],
) -> GivenDraws:
    """Reads and checks draws of the latents.

    Arguments:
        draws: as in ``diagnose_draws``.
        log_q: of the shape of the draws without their event, or None.
        chains: whether the first two dimensions of arrays are chain and draw.
        shapes: shape of one draw by latent; empty if not known.
        extra: names that draws may contain besides latents.

    Raises:
        ValueError: a latent is missing, unknown, not finite or of another shape; there are fewer
            than 100 draws; or `log_q` does not fit.
    """
    arrays, chains = _arrays(draws, chains, shapes, extra)
    _check_names(arrays, shapes)
    ndim = 2 if chains else 1
    leading = _leading(arrays, ndim)
    for name, array in arrays.items():
        _check_array(name, array, leading, shapes.get(name))
    num_draws = int(np.prod(leading))
    if num_draws < _LEAST:
        raise ValueError(
            f"{_WHO}: needs at least {_LEAST} draws; got {num_draws}. Draws come first in an "
            "array, and with chains=True chains come before them."
        )
    first = [n for n, a in arrays.items() if a.dtype.kind in "iub"]
    latents = {
        n: torch.from_numpy(np.array(a, dtype=np.float64)).reshape(
            num_draws, *a.shape[ndim:]
        )
        for n, a in arrays.items()
    }
    return GivenDraws(
        latents,
        _log_q(log_q, leading),
        leading[0] if chains else 0,
        first[0] if first else "",
    )


def _arrays(
    draws: Any,
    chains: bool,
    shapes: Mapping[str, tuple[int, ...]],
    extra: frozenset[str],
) -> tuple[dict[str, np.ndarray], bool]:
    """Arrays by latent, in the order of `shapes`, and whether they have chains."""
    group = _posterior_group(draws)
    if group is not None:
        found, chains = _of_group(group, shapes), True
    elif isinstance(draws, Mapping):
        found = {str(n): _array(str(n), v) for n, v in draws.items() if n not in extra}
    elif len(shapes) == 1:
        name = next(iter(shapes))
        found = {name: _array(name, draws)}
    else:
        raise ValueError(
            f"{_WHO}: draws must be a dict of arrays by latent or an ArviZ DataTree; got a "
            f"{type(draws).__name__}. One array is enough only if the model has one latent."
        )
    ordered = {n: found[n] for n in shapes if n in found}
    return ordered | found, chains


def _of_group(
    group: Any, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Arrays by latent; the group may hold generated quantities too."""
    found = {str(name): _of_variable(str(name), value) for name, value in group.items()}
    return {n: a for n, a in found.items() if n in shapes} if shapes else found


def _posterior_group(draws: Any) -> Any:
    """The xarray variables of a group ``posterior`` or of a Dataset; None for anything else."""
    for group in (getattr(draws, "posterior", None), draws):
        variables = getattr(group, "data_vars", None)
        if variables is not None:
            return variables
    if isinstance(draws, Mapping) or not hasattr(draws, "groups"):
        return None
    raise ValueError(f"{_WHO}: the {type(draws).__name__} has no group 'posterior'.")


def _of_variable(name: str, variable: Any) -> np.ndarray:
    if not set(_SAMPLE_DIMS) <= set(variable.dims):
        raise ValueError(
            f"{_WHO}: variable {name!r} of the group posterior has dimensions "
            f"{tuple(variable.dims)}; it needs 'chain' and 'draw'."
        )
    return _array(name, variable.transpose(*_SAMPLE_DIMS, ...).values)


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"{_WHO}: the draws of {name!r} must be an array of numbers; got "
                f"{type(value).__name__} of type {array.dtype}."
            ) from None
    return array


def _check_names(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if not arrays and not shapes:
        raise ValueError(f"{_WHO}: there are no draws; give an array for each latent.")
    if not shapes:
        return
    missing, unknown = (
        sorted(set(shapes) - set(arrays)),
        sorted(set(arrays) - set(shapes)),
    )
    if missing:
        raise ValueError(
            f"{_WHO}: the draws lack the latent {missing[0]!r}; the model draws {list(shapes)}."
        )
    if unknown:
        raise ValueError(
            f"{_WHO}: the model has no latent {unknown[0]!r}; it draws {list(shapes)}. Leave out "
            "what is not a latent."
        )


def _leading(arrays: Mapping[str, np.ndarray], ndim: int) -> tuple[int, ...]:
    """The dimensions of the samples: (S,) or (chains, draws)."""
    name, array = next(iter(arrays.items()))
    if array.ndim < ndim:
        needs = "chain and draw" if ndim == 2 else "draw"
        raise ValueError(
            f"{_WHO}: the draws of {name!r} have shape {array.shape}; they need a leading "
            f"dimension for each {needs}."
        )
    return array.shape[:ndim]


def _check_array(
    name: str,
    array: np.ndarray,
    leading: tuple[int, ...],
    shape: tuple[int, ...] | None,
) -> None:
    ndim = len(leading)
    if array.shape[:ndim] != leading:
        raise ValueError(
            f"{_WHO}: the draws of {name!r} have shape {array.shape}, but those of other latents "
            f"begin with {leading}; give the same number of draws of each."
        )
    if shape is not None and array.shape[ndim:] != shape:
        hint = "pass chains=True if chains come first"
        if ndim == 2:
            hint = "chains=True needs (chain, draw) first"
        raise ValueError(
            f"{_WHO}: one draw of {name!r} has shape {array.shape[ndim:]}, and in the model "
            f"{shape}; {hint}."
        )
    finite = np.isfinite(array).reshape(*leading, -1).all(-1)
    if not finite.all():
        raise ValueError(
            f"{_WHO}: {name!r} is not finite in {int((~finite).sum())} of {finite.size} draws; "
            "find out why, or leave these draws out and say so."
        )


def _log_q(value: Any, leading: tuple[int, ...]) -> Tensor | None:
    if value is None:
        return None
    array = np.array(_array("log_q", value), dtype=np.float64)
    if array.shape != leading:
        raise ValueError(
            f"{_WHO}: log_q must have one number per draw, shape {leading}; got {array.shape}."
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{_WHO}: log_q is not finite in {int((~np.isfinite(array)).sum())} draws, although "
            "each was drawn; check the density of the approximation."
        )
    return torch.from_numpy(array).flatten()
