"""Draws, densities and data as an ArviZ DataTree, and to and from netCDF.

Latents zₛ ~ q(z | x), s = 1 … S, are one chain of S independent draws. With the groups

    posterior              z, and every ``pyro.deterministic`` f(z)
    log_likelihood         log p(x | z), by observed site, in nats
    sample_stats           log_p = log p(x, z), log_q = log q(z | x), log_weight = log_p − log_q, in nats
    diagnostics            pareto_k, k̂ of the weights
    posterior_predictive   x̃ ~ p(x | z)
    prior                  z ~ p(z), and f(z)
    prior_predictive       x̃ ~ p(x | z) for these
    observed_data          x, as the model observes it
    constant_data          what else is in the batch

the functions of ArviZ work as they stand. k̂ has a group of its own, for it has no draws, and
ArviZ summarises no group in which a variable has none. With one chain of independent draws R̂ and
the effective sample size of ArviZ say nothing about q; k̂ does.

Reference: ArviZ: a modular and flexible library for exploratory analysis of Bayesian models,
Martin et al., 2026; Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry,
2024 (k̂).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from arviz_base import dict_to_dataset
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_path, check_seed, optional
from vilvm._runtime.files import atomic
from vilvm._runtime.hdf5 import check_contents, root_attributes
from vilvm._runtime.random import seeded
from vilvm.data.data import Data, as_data
from vilvm.diagnostics._components import runnable
from vilvm.diagnostics.psis import psis
from vilvm.evaluation.evaluate import in_parts, samples_in_a_pass
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    check_contract,
    evaluation_mode,
    fixed_beside,
)
from vilvm.weights import Layout, LogWeights, find_layout, log_weights
from vilvm.weights.generated_quantities import replay
from vilvm.weights.prepared import require_weights
from vilvm.weights.sampling import picked_by_weight
from vilvm.weights.simulation import undrawable

__all__ = ["load", "save", "to_datatree"]

_MARK = "written_by_vilvm"  # attribute of a saved tree that ``to_datatree`` did not make
_PREDICTED = 2**26  # numbers in a predictive group, unless more are asked for
_PROPOSALS = 10  # a resampled draw
_FEWEST = 25  # draws of which k̂ can be told
_PRIOR, _PREDICTIVE = ("prior", "prior_predictive"), ("posterior_predictive", "prior_predictive")
_SAMPLED = (
    "posterior",
    "log_likelihood",
    "sample_stats",
    "posterior_predictive",
    "prior",
    "prior_predictive",
)
_ORDER = (*_SAMPLED, "observed_data", "constant_data", "diagnostics")


class _Variable(NamedTuple):
    """One variable of one group: values, draws first where it has draws, and which of its axes is
    that of the data.
    """

    values: np.ndarray
    data_axis: int | None = None


_Groups = dict[str, dict[str, _Variable]]


@torch.no_grad()
def to_datatree(
    lvm: LatentVariableModel,
    data: Any,
    *,
    num_samples: int = 1000,
    num_predictive: int | None = None,
    resampled: bool = False,
    batch_size: int | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> xr.DataTree:
    """A model's posterior, predictive draws, densities and data as a DataTree, for ``arviz``.

    A variable has the dimensions (chain, draw, *its own), with one chain. What stands in the plate
    over the data has a dimension of that plate's name; any other is called "SITE_dim_0",
    "SITE_dim_1", and so on, unless `dims` names it.

    Where every latent stands in that plate (a VAE), weights are per datum: log_p, log_q and
    log_weight have dimensions (chain, draw, PLATE), and pareto_k (PLATE). Where data share a
    latent (eight schools) they are (chain, draw), of all data together, and pareto_k is one
    number. It is NaN for fewer than 25 draws.

    **Leave-one-out.** ``az.loo`` takes the draws for draws of the posterior; for a model with
    shared latents, ``az.loo_approximate_posterior(tree, tree.sample_stats.log_p,
    tree.sample_stats.log_q)`` corrects for the guide. Where latents are those of one datum, both
    run, and neither is leave-one-out: without its datum a latent has only its prior, so what is
    left is the harmonic mean estimate of log p(x), whose variance may be infinite (see its k̂).
    Compare such models by ``vilvm.evaluate`` on held-out data.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform
            is drawn once. Of many data, pass a part (``data.subset(slice(0, 100))``): what is made
            holds num_samples draws for each.
        num_samples: draws, S.
        num_predictive: draws in the prior and the predictive groups; by default num_samples, or as
            many as hold 2²⁶ numbers a group.
        resampled: whether the draws are resampled by their weights from 10 S of the guide, with
            replacement (see ``vilvm.resample``), which takes them to the posterior; pareto_k is
            then that of the 10 S, and the other densities are of the draws that are left.
        batch_size: data a pass, 50 by default; a model whose data share a latent is given all of
            them at once.
        coords: by dimension, its coordinates, such as {"data": names}; counted from 0 by default.
        dims: by site, names for its dimensions other than those of draws and data, such as {"z":
            ["code"]}.
        seed: of draws and transform; torch's generators are left as they were.

    Returns:
        The DataTree. Its attributes say model, seed, protocol, versions, where the draws come
            from, and which groups are left out and why: those
        of predictive draws where a likelihood cannot be drawn from, or the model observes factors
        only; those of the prior beside a ``pyro.factor``. Enumerated latents have no draws and are
        summed over in log_likelihood. Without sample_stats and diagnostics if the guide is
        degenerate or a prior is flat, and without the prior's groups in the latter case.

    Raises:
        ValueError: a number below 1, or coords or dims that do not fit.
        ContractError: the pair breaks the contract, has no latent, or subsamples its data at
            random.

    Example:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.export import to_datatree
        >>> tree = to_datatree(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=30)
        >>> dict(tree.posterior.z.sizes), tree.diagnostics.pareto_k.shape
        ({'chain': 1, 'draw': 30, 'data': 4, 'z_dim_0': 2}, (4,))
    """
    seed = check_seed("to_datatree: seed", seed)
    check_contract(lvm)
    num_samples = check_number("to_datatree: num_samples", num_samples)
    num_predictive = optional(check_number, "to_datatree: num_predictive", num_predictive)
    batch_size = optional(check_number, "to_datatree: batch_size", batch_size)
    for name, value in (("coords", coords), ("dims", dims)):
        if not isinstance(value, Mapping | None):
            raise ValueError(f"to_datatree: {name} must be a dict; got a {type(value).__name__}.")
    given, fixed = as_data(data), fixed_beside(lvm, data, seed)
    if num_predictive is None:
        num_predictive = min(
            num_samples, max(1, _PREDICTED // sum(t.numel() for _, t in _named(fixed.x)))
        )
    with seeded(seed, fixed.device), evaluation_mode(lvm):
        parts, layout = in_parts(lvm, fixed, batch_size)
        _check_layout(lvm, layout, resampled)
        absent = _absent(lvm, parts[0].x, layout)
        found: list[_Groups] = []
        for part in parts:
            here = (
                layout if part is parts[0] else find_layout(lvm, part.x, plate=layout.data_plate)
            )
            found.append(
                _groups(lvm, part.x, here, (num_samples, num_predictive), resampled, absent)
            )
    groups = _join(found)
    groups |= _constants(fixed.x, groups.get("observed_data", {}))
    named = _dims(groups, layout.data_plate, dims or {})
    _check_coords(groups, named, coords or {})
    attrs = _attrs(lvm, given, layout, num_samples, resampled, seed) | {
        f"no {group}": why for group, why in absent.items()
    }
    return _tree(groups, named, dict(coords or {}), attrs)


def save(tree: xr.DataTree, path: str | Path) -> Path:
    """Writes a DataTree to a netCDF file, atomically: what is at `path` is the old file or the new
    one, whole.

    Returns:
        The path, which ``load`` or ``arviz.from_netcdf`` reads.

    Raises:
        ValueError: it is no DataTree, or the path is a folder's, or of no file.
    """
    if not isinstance(tree, xr.DataTree):
        raise ValueError(
            f"save: tree must be a DataTree, as to_datatree makes it; got a {type(tree).__name__}."
        )
    path = check_path("save: path", path)
    if path.is_dir():
        raise ValueError(f"save: {path} is a folder; give the path of a file in it.")
    marked = tree.copy()
    if tree.attrs.get("inference_library") != "vilvm":
        marked.attrs = {**tree.attrs, _MARK: version("vilvm")}
    with atomic(path) as temporary:
        marked.to_netcdf(temporary, engine="h5netcdf")
    return path


def load(path: str | Path) -> xr.DataTree:
    """Reads a DataTree that ``save`` wrote into memory. Nothing is read but what is in the file
    itself (``vilvm._runtime.hdf5``).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a netCDF file, or only part of one, or one that ``save`` did not
            write, or it refers to another file or twice to one object.
    """
    path = check_path("load: path", path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path} to load a DataTree from; vilvm.export.save(tree, path) "
            "writes one."
        )
    try:
        attributes = root_attributes(path)
        tree = None
        if _MARK in attributes or attributes.get("inference_library") == "vilvm":
            check_contents(path)
            tree = xr.load_datatree(path, engine="h5netcdf")
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        RecursionError,
        AttributeError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as netCDF ({reason}): it is truncated or another kind of "
            "file; write it again with vilvm.export.save."
        ) from None
    if tree is None:
        raise ValueError(
            f"{path} was not written by vilvm.export.save; read it by arviz.from_netcdf, if you "
            "trust it."
        )
    tree.attrs.pop(_MARK, None)
    return tree


def _check_layout(lvm: object, layout: Layout, resampled: bool) -> None:
    if layout.subsample:
        raise ContractError(
            f"to_datatree: {type(lvm).__name__} subsamples its plate "
            f"{next(iter(layout.subsample))!r} at random, so its draws are of a part of the "
            "data; export a model whose plate takes all of it."
        )
    if not layout.latents:
        raise ContractError(
            f"to_datatree: the guide of {type(lvm).__name__} draws no latent, so there is no "
            "posterior to export."
        )
    if resampled:
        require_weights("to_datatree: resampled=True", lvm, layout)


def _absent(lvm: LatentVariableModel, batch: Any, layout: Layout) -> dict[str, str]:
    """Which groups cannot be made, and why."""
    factors = [n for n in layout.observed if layout.families[n] == "Unit"]
    still = undrawable(lvm, batch)
    found = {}
    if still:
        found = dict.fromkeys(
            _PREDICTIVE, f"the distribution of site {still[0]!r} cannot be drawn from"
        )
    if len(factors) == len(layout.observed):
        found = dict.fromkeys(_PREDICTIVE, "the model observes nothing but factors")
    if factors:
        found |= dict.fromkeys(
            _PRIOR, f"running the model does not draw from its pyro.factor {factors[0]!r}"
        )
    return found


def _groups(
    lvm: LatentVariableModel,
    batch: Any,
    layout: Layout,
    sizes: tuple[int, int],
    resampled: bool,
    absent: Mapping[str, str],
) -> _Groups:
    """The groups of one batch, of so many draws and predictive draws, without those that are
    absent.
    """
    num_samples, num_predictive = sizes
    groups: _Groups = defaultdict(dict)
    chunk = samples_in_a_pass(lvm, batch, layout)
    weighed = not (layout.degenerate or layout.improper)
    weights = log_weights(
        lvm, batch, num_samples * (_PROPOSALS if resampled else 1), chunk=chunk, layout=layout
    )
    if weighed:
        groups["diagnostics"]["pareto_k"] = _pareto_k(weights.log_weight)
    if resampled:
        if not bool((weights.log_weight.amax(0) > -torch.inf).all()):
            raise ContractError(
                "to_datatree: a datum has probability zero under all draws to be resampled; look "
                "at the guide."
            )
        weights = picked_by_weight(weights, num_samples, layout)
    if weighed:
        groups["sample_stats"] = _densities(weights)
    groups["log_likelihood"] = {
        n: _variable(v, 1 if v.dim() == 2 else None) for n, v in weights.log_likelihoods.items()
    }
    groups["posterior"] = {
        n: _variable(v, layout.data_axes.get(n)) for n, v in weights.latents.items()
    }
    runs = runnable(lvm, batch)
    _add_replays(groups, runs, batch, layout, chunk, num_predictive, weights.latents)
    if not (layout.improper or "prior" in absent):
        _add_replays(groups, runs, batch, layout, chunk, num_predictive, None)
    return {name: group for name, group in groups.items() if name not in absent}


def _constants(batch: Any, observed: dict[str, _Variable]) -> _Groups:
    """What else is in the data than what the model observes."""
    sizes = {v.values.shape[v.data_axis] for v in observed.values() if v.data_axis is not None}
    known = [v.values.ravel() for v in observed.values()]
    arrays = [(name, _array(tensor)) for name, tensor in _named(batch)]
    rest = {n: a for n, a in arrays if not any(np.array_equal(a.ravel(), x) for x in known)}
    found = {n: _Variable(a, 0 if a.ndim and len(a) in sizes else None) for n, a in rest.items()}
    return {"constant_data": found} if found else {}


def _pareto_k(log_w: Tensor) -> _Variable:
    k = psis(log_w).k if len(log_w) >= _FEWEST else torch.full(log_w.shape[1:], torch.nan)
    return _variable(k, 0 if k.dim() else None)


def _densities(weights: LogWeights) -> dict[str, _Variable]:
    """log p(x, z), log q(z | x) and log w, per datum or of all data together."""
    log_w = weights.log_weight

    def like(term: Tensor) -> Tensor:
        return term.double().sum(-1) if term.dim() > log_w.dim() else term.double()

    log_p = like(weights.log_likelihood) + like(weights.log_prior)
    terms = {"log_p": log_p, "log_q": like(weights.log_guide), "log_weight": log_w}
    return {name: _variable(term, 1 if term.dim() == 2 else None) for name, term in terms.items()}


def _add_replays(
    groups: _Groups,
    lvm: LatentVariableModel,
    batch: Any,
    layout: Layout,
    chunk: int,
    num_predictive: int,
    latents: Mapping[str, Tensor] | None,
) -> None:
    """Adds what the model says at these latents, or at as many of the prior: predictive draws, and
    deterministic values of every latent.
    """
    group = "prior" if latents is None else "posterior"
    total = num_predictive if latents is None else len(next(iter(latents.values())))
    found: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    axes: dict[str, int] = {}
    for start in range(0, total, chunk):
        size = min(chunk, total - start)
        part = (
            None if latents is None else {n: v[start : start + size] for n, v in latents.items()}
        )
        said = replay(lvm, batch, part, num_samples=size, layout=layout)
        axes = said.data_axes
        if start == 0 and latents is not None:
            recorded = {
                n: (v, axes[n] - 1 if n in axes else None) for n, v in said.recorded.items()
            }
            groups["observed_data"] = {n: _variable(v, axis) for n, (v, axis) in recorded.items()}
        drawn = {n: said.latents[n] for n in layout.latents} if latents is None else {}
        for name, value in {**drawn, **said.deterministics}.items():
            found[group, name].append(value)
        for name, value in said.observed.items() if start < num_predictive else ():
            found[f"{group}_predictive", name].append(value[: num_predictive - start])
        if start + size >= num_predictive and not said.deterministics:
            break
    for (where, name), values in found.items():
        groups[where][name] = _variable(torch.cat(values), axes.get(name))


def _join(parts: list[_Groups]) -> _Groups:
    """The groups of all batches, along the axis of the data."""

    def join(group: str, name: str) -> _Variable:
        values = [part[group][name].values for part in parts]
        axis = parts[0][group][name].data_axis
        return _Variable(values[0] if axis is None else np.concatenate(values, axis), axis)

    return {
        group: {name: join(group, name) for name in variables}
        for group, variables in parts[0].items()
        if variables
    }


def _dims(
    groups: _Groups, plate: str | None, given: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, list[str]]]:
    """By group and variable, the names of its dimensions other than those of draws."""
    known = sorted({name for variables in groups.values() for name in variables})
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"to_datatree: dims names dimensions of {unknown[0]!r}, which is no site; there are "
            f"{known}."
        )

    def name_all(group: str, name: str, variable: _Variable) -> list[str]:
        axes = range(int(group in _SAMPLED), variable.values.ndim)
        events = [a for a in axes if a != variable.data_axis]
        names = list(given.get(name, [])) if group != "log_likelihood" else []
        if names and len(names) != len(events):
            raise ValueError(
                f"to_datatree: dims gives {names} for {name!r}, which has {len(events)} "
                "dimensions besides draws and data."
            )
        clash = sorted({*known, "chain", "draw", str(plate)} & set(names))
        if clash or len(set(names)) < len(names):
            raise ValueError(
                f"to_datatree: {clash[0] if clash else names[0]!r} in dims is taken; give another "
                "name."
            )
        names = names or [f"{name}_dim_{i}" for i in range(len(events))]
        return [str(plate) if a == variable.data_axis else names[events.index(a)] for a in axes]

    return {
        g: {n: name_all(g, n, v) for n, v in variables.items()} for g, variables in groups.items()
    }


def _check_coords(
    groups: _Groups, dims: dict[str, dict[str, list[str]]], coords: Mapping[str, Sequence[Any]]
) -> None:
    """One size a dimension, and as many coordinates."""
    sizes: dict[str, int] = {}
    for group, variables in groups.items():
        for name, variable in variables.items():
            for dim, size in zip(
                dims[group][name], variable.values.shape[int(group in _SAMPLED) :], strict=True
            ):
                if sizes.setdefault(dim, size) != size:
                    raise ValueError(
                        f"to_datatree: dimension {dim!r} has size {sizes[dim]} and, of {name!r}, "
                        f"{size}; give them two names in dims."
                    )
    for dim, values in coords.items():
        if dim not in sizes:
            raise ValueError(
                f"to_datatree: coords has {dim!r}, which is no dimension; there are "
                f"{sorted(sizes)}."
            )
        if len(values) != sizes[dim]:
            raise ValueError(
                f"to_datatree: {len(values)} coordinates for dimension {dim!r}, which has size "
                f"{sizes[dim]}."
            )


def _tree(
    groups: _Groups,
    dims: dict[str, dict[str, list[str]]],
    coords: dict[str, Any],
    attrs: dict[str, Any],
) -> xr.DataTree:
    made: dict[str, xr.Dataset] = {}
    origin = {key: attrs[key] for key in ("inference_library", "inference_library_version")}
    for group in sorted(groups, key=_ORDER.index):
        sampled = ("chain", "draw") if group in _SAMPLED else ()
        # a slash would be a group of its own
        public = {name: name.replace("/", ".") for name in groups[group]}
        values = {
            public[n]: v.values[None] if sampled else v.values for n, v in groups[group].items()
        }
        names: Any = {
            public[n]: [*sampled, *(d.replace("/", ".") for d in own)]
            for n, own in dims[group].items()
        }
        made[group] = dict_to_dataset(
            values, attrs=origin, coords=coords, dims=names, sample_dims=[]
        )
        made[group].attrs["sample_dims"] = list(sampled)  # the plots read it
    tree = xr.DataTree.from_dict(made)
    tree.attrs = {**attrs, "created_at": next(iter(made.values())).attrs["created_at"]}
    return tree


def _attrs(
    lvm: object, data: Data, layout: Layout, num_samples: int, resampled: bool, seed: int
) -> dict[str, Any]:
    proposals = (
        f"resampled by their weights, with replacement, from {_PROPOSALS * num_samples} of the "
        "guide"
    )
    return {
        "inference_library": "vilvm",
        "inference_library_version": version("vilvm"),
        **{
            f"{name.split('-')[0]}_version": version(name)
            for name in ("torch", "pyro-ppl", "arviz")
        },
        "model": f"{type(lvm).__module__}.{type(lvm).__qualname__}",
        **{
            key: value if isinstance(value, int) else str(value)
            for key, value in data.protocol().items()
        },
        "seed": seed,
        "draws": proposals if resampled else "of the guide",
        "weights": "per datum" if layout.local else "of all data together",
    }


def _named(batch: Any, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch, by key or place."""
    if isinstance(batch, Tensor):
        yield name, batch
        return
    if isinstance(batch, Mapping):
        items = [(str(key), value) for key, value in batch.items()]
    elif isinstance(batch, list | tuple):
        items = list(
            zip(
                getattr(batch, "_fields", [f"{name}_{i}" for i in range(len(batch))]),
                batch,
                strict=True,
            )
        )
    else:
        return
    for key, value in items:
        yield from _named(value, key)


def _variable(value: Tensor, data_axis: int | None) -> _Variable:
    return _Variable(_array(value), data_axis)


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
