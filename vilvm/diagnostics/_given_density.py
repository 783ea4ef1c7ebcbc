"""The density that given draws are compared with, at the draws and in unconstrained coordinates.

A latent z is T(u), T being the bijection from ℝᵈ to its support. At each draw this computes

    log p(x, z)    over the latents themselves, for importance weights,
    u,    ∇ᵤ [log p(x, T(u)) + log |∂T/∂u|]    for Stein's identity,

from a Pyro model in float64, or from a log joint density that is a function of the latents. A
model needs a guide only to find its latents and their plates; this one draws u near the origin, so
that a prior may be flat.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    IndependentTransform,
    Transform,
    biject_to,
)

from vilvm.data.data import as_data
from vilvm.diagnostics._components import indexed
from vilvm.guides import init_to_origin
from vilvm.lvm import ContractError, Pair, fixed_beside, model_of
from vilvm.weights._bijections import bijection_to
from vilvm.weights._contract import enumerable
from vilvm.weights._observed_values import run_model_alone
from vilvm.weights.generated_quantities import replay
from vilvm.weights.log_joint import LogJoint
from vilvm.wrappers import InFloat64

__all__ = ["AtDraws", "FunctionDensity", "ModelDensity"]

_WHO = "diagnose_draws"
_ROWS = 400_000  # draws × data at a time
_ROUND_TRIP = 1e-3  # of a latent and T(u), relative to its size
# sd of the guide, so that draws are in supports that depend on other latents
_NARROW = 0.01


class AtDraws(NamedTuple):
    """The density at S draws, float64.

    Arguments:
        log_joint: log p(x, z) over the latents themselves, shape (S,).
        log_prior: log p(z), shape (S,); None if a prior is flat or not known.
        u: unconstrained coordinates, shape (S, D).
        score: ∇ᵤ of the log-density of u, shape (S, D); None if there is no gradient.
    """

    log_joint: Tensor
    log_prior: Tensor | None
    u: Tensor
    score: Tensor | None

    @classmethod
    def joined(cls, parts: list["AtDraws"]) -> "AtDraws":
        """The draws of several parts."""
        columns: Any = zip(*parts, strict=True)
        joined: Any = (None if c[0] is None else torch.cat(c) for c in columns)
        return cls(*joined)


class ModelDensity:
    """The density of a Pyro model of some data.

    Arguments:
        model: a function of the data, or a pair, whose guide is ignored; parameters are copied.
        data: as for ``vilvm.fit``.
        seed: of the data's transform.
        who: names the caller in errors.

    Its `shapes` are those of one draw, by latent; draws may also contain the names `extra`; `flat`
    is a latent of flat prior, or ""; `data_axes` and `data_plate` are as in ``Layout``.
    """

    def __init__(self, model: Any, data: Any, seed: int = 0, who: str = _WHO):
        own = model_of(model, who)
        given = as_data(data, dtype=torch.float64)  # the model runs in float64
        fixed = fixed_beside(model, given, seed).loaded()
        batch, pair = fixed.x, copy.deepcopy(Pair(own, lambda _: None))
        self.lvm: Any = InFloat64(pair)
        pair.guide = _standard_guide(_latent_sites(self.lvm, batch, who))
        self.data, self.num_data, self.device = fixed, len(fixed), fixed.device
        self.joint = self._joint(batch)
        self.tempered = self.joint.layout.tempered
        self.data_axes = dict(self.joint.layout.data_axes)
        self.data_plate = self.joint.layout.data_plate
        self.flat = next(iter(self.joint.layout.improper), "")
        one = self.joint.latents(self.joint.draw(1))
        self.shapes = {n: tuple(v.shape[1:]) for n, v in one.items()}
        made = replay(self.lvm, batch, one).deterministics
        self.extra = frozenset((*made, *self.joint.layout.enumerated))

    def _joint(self, batch: Any) -> LogJoint:
        """The joint density; its base is the prior where that can be drawn from."""
        joint = LogJoint(self.lvm, batch, base="guide", improper=True)
        if joint.layout.improper:
            return joint
        return LogJoint(self.lvm, batch, base="prior")

    @property
    def chunk(self) -> int:
        """Draws at a time."""
        return max(1, _ROWS // max(self.joint.layout.num_data, 1))

    def at(self, latents: Mapping[str, Tensor]) -> AtDraws:
        """The density at draws of all latents, shape (S, *event) each."""
        given = {n: v.to(self.device) for n, v in latents.items()}
        joint = self.joint
        with pyro.validation_enabled(False):
            u = joint.unconstrained(given).requires_grad_()
            _check_support(given, joint.latents(u))
            found = joint(u)
            (score,) = torch.autograd.grad(found.target.sum(), u)
            jacobian = joint.log_jacobian(u)
        log_prior = None
        if joint.base == "prior":
            log_prior = (found.base - jacobian).detach().sum(1).cpu()
        return AtDraws(
            (found.target - jacobian).detach().sum(1).cpu(),
            log_prior,
            u.detach().flatten(1).cpu(),
            score.flatten(1).cpu(),
        )

    def coordinates(self, latents: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Names of the D coordinates u."""
        joint = self.joint
        width = sum(shape.single.numel() for shape in joint.shapes.values())
        index = torch.arange(width, dtype=torch.float64).reshape(1, joint.num_data, -1)
        names = [""] * width
        for site, at in joint.by_site(index).items():
            own = _coordinate_names(site, at[0], self.shapes[site])
            for i, name in zip(at.flatten().long().tolist(), own, strict=True):
                names[i] = name
        return tuple(names)


class FunctionDensity:
    """A density that is a function of the latents.

    Arguments:
        log_joint: called with draws by latent, shape (S, *event) each, and returns shape (S,).
        supports: by latent, the torch constraint of its values; all others are real.
    """

    flat, device = "", torch.device("cpu")
    chunk = _ROWS

    def __init__(self, log_joint: Callable[[dict[str, Tensor]], Any], supports: Any):
        if not callable(log_joint):
            raise ValueError(
                f"{_WHO}: log_joint must be a function of a dict of latents; got a "
                f"{type(log_joint).__name__}."
            )
        self.log_joint, self.supports = log_joint, dict(supports or {})
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.extra: frozenset[str] = frozenset()
        self.tempered: dict[str, float] = {}
        self.data_axes: dict[str, int] = {}
        self.data_plate = ""

    def at(self, latents: Mapping[str, Tensor]) -> AtDraws:
        """The density at draws of all latents, shape (S, *event) each."""
        for name in self.supports:
            if name not in latents:
                raise ValueError(
                    f"{_WHO}: supports names {name!r}, which the draws do not have; they have "
                    f"{sorted(latents)}."
                )
        parts = {n: self._transform(n).inv(v) for n, v in latents.items()}
        sizes = [v[0].numel() for v in parts.values()]
        u = torch.cat(
            [v.reshape(len(v), -1) for v in parts.values()], 1
        ).requires_grad_()
        given, jacobian = {}, u.new_zeros(len(u))
        for (name, v), flat in zip(parts.items(), u.split(sizes, 1), strict=True):
            transform, own = self._transform(name), flat.reshape(v.shape)
            given[name] = transform(own)
            log_det = transform.log_abs_det_jacobian(own, given[name])
            jacobian = jacobian + log_det.reshape(len(u), -1).sum(1)
        _check_support(latents, given)
        log_p = self._evaluated(given, len(u))
        score = None
        if log_p.requires_grad:
            (score,) = torch.autograd.grad((log_p + jacobian).sum(), u)
        return AtDraws(log_p.detach().double(), None, u.detach(), score)

    def coordinates(self, latents: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Names of the D coordinates u."""
        return tuple(
            name
            for n, v in latents.items()
            for name in _coordinate_names(
                n, self._transform(n).inv(v[:1])[0], tuple(v.shape[1:])
            )
        )

    def _transform(self, name: str) -> Any:
        return biject_to(self.supports.get(name, dist.constraints.real))

    def _evaluated(self, latents: dict[str, Tensor], num_draws: int) -> Tensor:
        found = self.log_joint(latents)
        if not isinstance(found, Tensor):
            found = torch.as_tensor(np.asarray(found))
        if found.shape != (num_draws,):
            raise ValueError(
                f"{_WHO}: log_joint must return one number per draw, shape ({num_draws},); it "
                f"returned {tuple(found.shape)}."
            )
        return found


def _check_support(given: Mapping[str, Tensor], mapped: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless every latent is T(T⁻¹(z)), as it is inside its support."""
    for name, value in given.items():
        size = value.abs().amax().clamp(min=1e-300)
        near = (value - mapped[name]).abs() <= _ROUND_TRIP * torch.maximum(
            value.abs(), 1e-3 * size
        )
        outside = ~near.reshape(len(near), -1).all(1)
        if bool(outside.any()):
            raise ValueError(
                f"{_WHO}: latent {name!r} is outside its support, or on its boundary, in "
                f"{int(outside.sum())} of {len(value)} draws (first: draw "
                f"{int(outside.nonzero()[0])}); give draws of the latents of this model, "
                "constrained as it constrains them."
            )


def _coordinate_names(site: str, u: Tensor, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the coordinates of a site: those of its components, or numbers if fewer."""
    if u.numel() != int(np.prod(shape)):
        shape, site = (u.numel(),), f"T⁻¹({site})"
    return tuple(indexed(site, index) for index in np.ndindex(*shape))


# The guide that finds a model's latents
# --------------------------------------------------------------------------------------------


def _latent_sites(lvm: Any, batch: Any, who: str) -> dict[str, Any]:
    """The sites that the model draws and does not enumerate, at the origin."""
    sites = run_model_alone(lvm, batch, InitMessenger(init_to_origin)(lvm.model))
    found = {n: s for n, s in sites.items() if not (s["is_observed"] or enumerable(s))}
    for name, site in found.items():
        if getattr(site["fn"].support, "is_discrete", False):
            raise ContractError(
                f"{who}: latent {name!r} is discrete; sum over it "
                "(infer={'enumerate': 'parallel'}) and leave it out of the draws."
            )
    return found


def _standard_guide(sites: Mapping[str, Any]) -> Callable[[Any], None]:
    """A guide with z = T(u), u near the origin, in the plates of the model."""

    def guide(batch: Any) -> None:
        plates: dict[str, Any] = {}  # one that several sites share is made once
        for name, site in sites.items():
            transform = bijection_to(site)
            shape = transform.inverse_shape(site["value"].shape)
            normal = dist.Normal(torch.zeros(shape), _NARROW)
            of_u = normal.to_event(transform.domain.event_dim)
            drawn = dist.TransformedDistribution(of_u, list(_parts(transform)))
            rest = site["fn"].event_dim - len(drawn.event_shape)
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    if frame.vectorized:
                        if frame.name not in plates:
                            plates[frame.name] = pyro.plate(
                                frame.name, frame.size, dim=frame.dim
                            )
                        stack.enter_context(plates[frame.name])
                pyro.sample(name, drawn.to_event(rest))

    return guide


def _parts(transform: Transform) -> Iterator[Transform]:
    """The transforms that a composed one applies.

    The codomain of a composed transform is that of its last part as if applied to all of ℝᵈ.
    """
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            yield from _parts(part)
    elif isinstance(transform, IndependentTransform):
        rank = transform.reinterpreted_batch_ndims
        for part in _parts(transform.base_transform):
            yield IndependentTransform(part, rank)
    else:
        yield transform
