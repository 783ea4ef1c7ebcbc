"""The mean of the latents under the guide, E[z | x]: exact where it is known, else of many draws.

The mean of a latent is known

- if its distribution in the guide has a mean that depends on no other draw, as with an encoder;
- if an automatic guide computes the latent as z = f(u), elementwise, from a Gaussian u with means
  μ and standard deviations σ. Then E[z] = ∫ f(μ + σ t) φ(t) dt for each component. Where the
  prior's support is the real line, f is the identity; on half a line it is exp, and
  E[z] = exp(μ + σ²/2); on an interval it is the sigmoid, and the trapezoidal rule converges
  exponentially, because the integrand is analytic.

Otherwise (a flow, a simplex, a latent that depends on another) it is the mean over draws of the
conditional mean of z given the draws before it, with a Monte Carlo standard error.

Reference: The Exponentially Convergent Trapezoidal Rule, Trefethen and Weideman, 2014.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to, transforms

from vilvm._runtime.argument_checks import check_number
from vilvm.data._foreign import is_foreign
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    data_beside,
    device_of,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._guide_runs import guide_pass, run_guide
from vilvm.weights._model_runs import check_means, mean_or_value
from vilvm.weights._passes import Values
from vilvm.weights._sites import (
    UNCONSTRAINED,
    Sites,
    family,
    is_random,
    own_values,
    sites_of,
)
from vilvm.weights._supports import guide_sites
from vilvm.weights._traces import run, trace_of
from vilvm.weights._vectorisation import run_at_samples
from vilvm.weights.checks import check_batch
from vilvm.weights.frames import latents_frame
from vilvm.weights.layout import Layout, find_layout
from vilvm.weights.prepared import rows_in_a_pass

__all__ = ["Means", "posterior_mean"]

_ROWS = 1000  # data that are read and run at once
_PROBE = 32  # draws under which a mean that depends on other draws would change
_GAUSSIAN = ("Normal", "MultivariateNormal", "LowRankMultivariateNormal")
# Bounded by a linear function, and analytic: the trapezoidal rule from −9 to 9 is exact to 1e-8
# up to standard deviations of 50.
_SMOOTH = (
    transforms.SigmoidTransform,
    transforms.SoftplusTransform,
    transforms.TanhTransform,
)
_STEP, _REACH = 0.02, 9.0


class Means(dict[str, Tensor]):
    """Means by latent, with their Monte Carlo standard errors.

    Arguments:
        means: by latent, shape (num_data, ...).
        errors: by latent, of the same shapes: zero where the mean is exact, NaN for the mean of a
            single draw.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> means = vilvm.posterior_mean(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6))
        >>> means["z"].shape, means.errors["z"].max().item()
        (torch.Size([4, 2]), 0.0)
    """

    def __init__(self, means: dict[str, Tensor], errors: dict[str, Tensor]):
        super().__init__(means)
        self.errors = errors


def posterior_mean(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int = 1000,
    *,
    layout: Layout | None = None,
    as_frame: bool = False,
) -> Any:
    """E[z | x] under the guide: exact where it is known, else the mean of `num_samples` draws.

    It is exact for latents whose mean in the guide depends on no other draw, and for automatic
    guides with a Gaussian and latents on the real line, on half of it or on an interval. A latent
    that depends on another is averaged over draws of the other.

    Arguments:
        lvm: the model and guide; the guide alone is drawn from.
        batch: what both are called with, or data that ``vilvm.data.as_data`` converts. Those that
            are on disk or sparse are read in batches.
        num_samples: draws, where they are needed.
        layout: the layout of this very batch; by default a run of the pair finds it.
        as_frame: whether to return a pandas DataFrame, which has the row labels of the data.

    Returns:
        ``Means``: every latent by name, shape (num_data, ...); (...) for a latent that the data
        share. ``errors`` holds their Monte Carlo standard errors. With `as_frame`, a DataFrame
        with a row for each datum and the columns "z[0]", "z[1]", …

    Raises:
        ContractError: the pair breaks the contract on this batch, or a latent has no mean (a
            Categorical); or the data share a latent, and are read in batches or `as_frame` is set.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> lvm = vilvm.Pair(model, AutoNormal(model, init_scale=0.5))
        >>> means = vilvm.posterior_mean(lvm, torch.ones(9))
        >>> means.errors["scale"].item()
        0.0
        >>> from vilvm.models.vae import VAE
        >>> lvm = VAE(data_dim=6, latent_dim=2)
        >>> vilvm.posterior_mean(lvm, torch.zeros(4, 6), as_frame=True).shape
        (4, 2)
    """
    num_samples = check_number("num_samples", num_samples)
    if as_frame or isinstance(batch, Data) or is_foreign(batch):
        return _means_of_data(lvm, batch, num_samples, as_frame)
    check_batch(batch)
    return _means(lvm, batch, num_samples, layout or find_layout(lvm, batch))


def _means(
    lvm: LatentVariableModel, batch: Any, num_samples: int, layout: Layout
) -> Means:
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        known = _Known.of(lvm, batch, layout)
        moments = _moments(lvm, batch, layout, num_samples, known)
    means = {name: moments["means", name].value for name in layout.latents}
    errors = {name: moments["means", name].error for name in layout.latents}
    exact: dict[str, Tensor] = means if layout.deterministic else {}
    if all(found.constant for key, found in moments.items() if key[0] != "means"):
        exact = exact | known.means
    zeros = {name: torch.zeros_like(errors[name]) for name in exact}
    return Means(means | exact, errors | zeros)


def _means_of_data(lvm: Any, data: Any, num_samples: int, as_frame: bool) -> Any:
    """The means for data with row labels, or data that are read in batches."""
    given = data_beside(lvm, data, "posterior_mean")
    if given.transform is not None and not given.transformed:
        check_batch(given)
    given = given.to(device_of(lvm, given.device))
    size = _ROWS if given.streamed else len(given)
    parts, axes = [], {}
    for part in given.chunks(size):
        layout = find_layout(lvm, part.x)
        axes = {name: layout.data_axes.get(name) for name in layout.latents}
        if given.streamed or as_frame:
            _check_not_shared(axes)
        parts.append(_means(lvm, part.x, num_samples, layout))
    means = _joined(parts, axes)
    if as_frame:
        return latents_frame(_rows_first(means, axes), given.index)
    return means


def _rows_first(
    means: Mapping[str, Tensor], axes: Mapping[str, int | None]
) -> dict[str, Tensor]:
    return {n: value.movedim((axes[n] or 1) - 1, 0) for n, value in means.items()}


def _check_not_shared(axes: Mapping[str, int | None]) -> None:
    """Raises ContractError if the data share a latent, which has no row for each datum."""
    for name, axis in axes.items():
        if axis is None:
            raise ContractError(
                f"posterior_mean: the data share the latent {name!r}, so it has no row for each "
                "datum; leave as_frame out, and pass data in memory."
            )


def _joined(parts: list[Means], axes: Mapping[str, int | None]) -> Means:
    """The means of all parts of the data, along the axis of the data."""
    if len(parts) == 1:
        return parts[0]
    together = [
        {n: torch.cat([p[n] for p in found], (a or 1) - 1) for n, a in axes.items()}
        for found in (parts, [part.errors for part in parts])
    ]
    return Means(*together)


def _as_float(value: Tensor) -> Tensor:
    return value if value.is_floating_point() else value.float()


# Means of draws
# --------------------------------------------------------------------------------------------


def _moments(
    lvm: LatentVariableModel,
    batch: Any,
    layout: Layout,
    num_samples: int,
    known: "_Known",
) -> "dict[tuple[str, str], _Moments]":
    """The conditional means of the latents over draws of the guide, by ("means", latent).

    The means and variances of the Gaussians that known means come from are beside them.
    """
    sites: Sites = {}  # of the last run

    def read(found: Sites, size: int) -> Values:
        sites.update(found)
        kinds = {"means": (layout.latents, mean_or_value)}
        if known.gaussians:
            kinds["locs"] = known.gaussians, _loc
            kinds["variances"] = known.gaussians, _variance
        return {
            kind: own_values(
                {n: {**found[n], "value": of(found[n])} for n in names},
                size,
                layout.nesting,
            )
            for kind, (names, of) in kinds.items()
        }

    pass_ = guide_pass(lvm, layout, read, f"means, {known.gaussians}")
    moments: dict[tuple[str, str], _Moments] = defaultdict(_Moments)
    for size in _sizes(batch, layout, num_samples, bool(known.gaussians)):
        values = run_at_samples(
            lvm, batch, size, pass_, vectorisation=layout.vectorisation
        )
        check_means(values["means"], sites)
        for kind in {"means", "locs", "variances"} & values.keys():
            for name, value in values[kind].items():
                moments[kind, name].add(value)
        if _is_enough(moments, sites, known):
            break
    return moments


def _loc(site: Any) -> Tensor:
    return site["fn"].mean.expand(site["value"].shape)


def _variance(site: Any) -> Tensor:
    return site["fn"].variance.expand(site["value"].shape)


def _sizes(batch: Any, layout: Layout, num_samples: int, probe: bool) -> Iterator[int]:
    """The sizes of the passes: a few draws first, which show whether more are needed."""
    if layout.deterministic:
        num_samples = 1
    elif probe:
        num_samples = max(num_samples, _PROBE)
    most = rows_in_a_pass(tensors_of(batch)[0].device) // max(layout.num_data, 1)
    done = 0
    while done < num_samples:
        size = min(max(_PROBE, most) if done else _PROBE, num_samples - done)
        yield size
        done += size


def _is_enough(
    moments: "Mapping[tuple[str, str], _Moments]", sites: Sites, known: "_Known"
) -> bool:
    """Whether all means depend on no draw, so that more draws would add nothing."""
    # a discrete draw may repeat by chance
    if any(is_random(site) and _is_discrete(site) for site in sites.values()):
        return False
    return all(
        found.constant and found.count >= _PROBE
        for (kind, name), found in moments.items()
        if kind != "means" or name not in known.means
    )


def _is_discrete(site: Any) -> bool:
    return not site["value"].is_floating_point() or getattr(
        site["fn"].support, "is_discrete", False
    )


class _Moments:
    """Running mean and squared deviations of draws along the first dimension."""

    def __init__(self) -> None:
        self.count, self.first = 0, torch.empty(0)
        self.constant = True

    def add(self, draws: Tensor) -> None:
        """Adds draws, shape (S, ...)."""
        if not self.count:
            self.first = draws[0].detach().clone()  # not the parameter itself
            self.mean = torch.zeros_like(self.first, dtype=torch.float64)
            self.squares = torch.zeros_like(self.mean)
        self.constant = self.constant and bool((draws == self.first).all())
        size, values = len(draws), draws.double()
        mean = values.mean(0)
        step, total = mean - self.mean, self.count + size
        self.squares += (values - mean).square().sum(0)
        self.squares += step.square() * self.count * size / total
        self.mean = self.mean + step * size / total
        self.count = total

    @property
    def value(self) -> Tensor:
        """The mean; integers that are all equal remain integers, to be used as indices."""
        if self.constant:
            return self.first
        return self.mean.to(_as_float(self.first).dtype)

    @property
    def error(self) -> Tensor:
        """The standard error of the mean; NaN for a single draw."""
        if self.count == 1:
            return torch.full_like(_as_float(self.first), math.nan)
        error = (self.squares / (self.count - 1) / self.count).sqrt()
        if self.constant:
            error = torch.zeros_like(error)
        return error.to(_as_float(self.first).dtype)


# Means of automatic guides
# --------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """The Gaussian components that a latent is a function of.

    Arguments:
        latent: the site of the latent.
        transform: from the components to the latent.
        site: the auxiliary site.
        part: the components in it.
    """

    latent: Any
    transform: Any
    site: Any
    part: slice

    def mean(self) -> Tensor | None:
        """E[z], of the shape of the site's value, or None if it is not known."""
        value = self.latent["value"]
        shape = self.transform.inverse_shape(value.shape)
        loc, variance = (
            of(self.site).flatten()[self.part].reshape(shape).double()
            for of in (_loc, _variance)
        )
        mean = expectation(self.transform, loc, variance.sqrt())
        return None if mean is None else mean.detach().clone()


class _Known(NamedTuple):
    """Means that are known if the Gaussians that they come from depend on no draw.

    Arguments:
        means: by latent, shape (num_data, ...).
        gaussians: the names of the auxiliary sites.
    """

    means: dict[str, Tensor]
    gaussians: tuple[str, ...]

    @classmethod
    def of(cls, lvm: LatentVariableModel, batch: Any, layout: Layout) -> "_Known":
        """Finds them by a single-sample run of the pair."""
        guide = {n.removeprefix("guide ") for n in layout.sites if n[:6] == "guide "}
        if guide <= set(layout.latents):
            return cls({}, ())
        sites = guide_sites(run_guide(lvm.guide, batch, {}, None, layout))
        model = sites_of(run(lvm.model, "model", batch, trace_of(sites)))
        means, gaussians = {}, {}
        for name, source in _sources(sites, model, layout).items():
            mean = source.mean()
            if mean is not None:
                value = mean.to(source.latent["value"].dtype)
                made = {name: {**source.latent, "value": value}}
                means[name] = own_values(made, 1, layout.nesting)[name][0]
                gaussians[source.site["name"]] = None
        return cls(means, tuple(gaussians))


def _sources(sites: Sites, model: Sites, layout: Layout) -> dict[str, _Source]:
    """The sources of the latents that have one, in a single-sample run of the pair.

    An automatic guide draws an auxiliary site for each latent, or a vector for all that follow.
    The value of the latent confirms its source.
    """
    found, vector, start = {}, None, 0
    for name, site in sites.items():
        if name not in layout.latents:
            if is_random(site) and not name.endswith(UNCONSTRAINED):
                vector, start = site, 0
        elif family(site["fn"]) == "Delta" and not _is_discrete(model[name]):
            transform = biject_to(model[name]["fn"].support)
            size = transform.inverse_shape(site["value"].shape).numel()
            source, index = sites.get(name + UNCONSTRAINED), slice(0, size)
            if source is None:
                source, index = vector, slice(start, start + size)
                start += size
            if source is not None and _makes(transform, source, index, site["value"]):
                found[name] = _Source(site, transform, source, index)
    return found


def _makes(transform: Any, source: Any, index: slice, value: Tensor) -> bool:
    """Whether the transform maps these components of a Gaussian draw to the value."""
    if family(source["fn"]) not in _GAUSSIAN:
        return False
    shape = transform.inverse_shape(value.shape)
    drawn = source["value"].flatten()[index]
    if drawn.numel() != shape.numel():
        return False
    return torch.allclose(transform(drawn.reshape(shape)), value, equal_nan=True)


def expectation(transform: Any, loc: Tensor, scale: Tensor) -> Tensor | None:
    """E f(u) of Gaussian components u, or None if f is not elementwise or not known here.

    Arguments:
        transform: f, a torch transform.
        loc: means of u, float64.
        scale: standard deviations of u, of the same shape.

    Returns:
        The means, of the shape of `loc`.

    Examples:
        >>> import torch
        >>> from torch.distributions.transforms import ExpTransform
        >>> from vilvm.weights.guide_means import expectation
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> expectation(ExpTransform(), zero, one).log()
        tensor([0.5000])
    """
    parts = list(_elementary(transform))
    while parts and isinstance(parts[0], transforms.AffineTransform):
        first = parts.pop(0)
        loc, scale = first(loc), scale * abs(first.scale)
    rest = parts[1:]
    if not parts:
        return loc
    if not all(isinstance(part, transforms.AffineTransform) for part in rest):
        return None
    if isinstance(parts[0], transforms.ExpTransform):
        mean = (loc + scale.square() / 2).exp()
    elif isinstance(parts[0], _SMOOTH):
        mean = _integral(parts[0], loc, scale)
    else:
        return None
    for part in rest:
        mean = part(mean)
    return mean


def _elementary(transform: Any) -> Iterator[Any]:
    """The parts of a transform, first to last, without ``to_event``."""
    if isinstance(transform, transforms.ComposeTransform):
        for part in transform.parts:
            yield from _elementary(part)
    elif isinstance(transform, transforms.IndependentTransform):
        yield from _elementary(transform.base_transform)
    else:
        yield transform


def _integral(transform: Any, loc: Tensor, scale: Tensor) -> Tensor:
    """∫ f(loc + scale t) φ(t) dt by the trapezoidal rule."""
    nodes = torch.arange(-_REACH, _REACH + _STEP / 2, _STEP, dtype=torch.float64)
    weights = (-nodes.square() / 2).exp()
    weights = weights / weights.sum()
    total = torch.zeros_like(loc)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        total += weight * transform(loc + scale * node)
    return total
