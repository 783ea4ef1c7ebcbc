"""Approximate posteriors of the unconstrained latents u, and the guides that hold them.

Gaussian:  u = m + L ε,  ε ~ N(0, I).
Skewed:    u = m + s · T(R ε), T_d(v) = [sinh((asinh v + a_d) b_d) − sinh(a_d b_d)] / b_d, so that
           every margin has its own skewness a_d and weight of tails b_d < 1 (a Gaussian at a = 0,
           b = 1).
Mixture:   one of several, each with its probability.

Reference: Sinh-arcsinh distributions, Jones and Pewsey, 2009.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor, nn
from torch.distributions import constraints

from vilvm.guides import init_to_origin
from vilvm.inference._preparation import continuous, latent_sites
from vilvm.lvm import Pair
from vilvm.wrappers.in_float64 import InFloat64

__all__ = [
    "Approximation",
    "AutoMixture",
    "Chain",
    "Gaussian",
    "LowRank",
    "Mixture",
    "Skewed",
    "composed",
    "deviations",
    "pair_of",
    "skewed",
]


class Gaussian(nn.Module):
    """N(m, L Lᵀ), or N(m, diag(s²)) for a vector L = s.

    Arguments:
        loc: m, shape (D,).
        scale: L, shape (D, D), lower triangular; or s, shape (D,).
    """

    def __init__(self, loc: Tensor, scale: Tensor):
        super().__init__()
        self.loc, self.scale = nn.Parameter(loc), nn.Parameter(scale)

    def forward(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """u at ε of shape (S, D), and log |∂u/∂ε|, shape () or (S,)."""
        if self.scale.dim() == 1:
            return self.loc + eps * self.scale, self.scale.log().sum()
        return self.loc + eps @ self.scale.mT, self.scale.diagonal().log().sum()

    def inverse(self, u: Tensor) -> Tensor:
        """ε at u of shape (S, D)."""
        if self.scale.dim() == 1:
            return (u - self.loc) / self.scale
        solve = torch.linalg.solve_triangular
        return solve(self.scale, (u - self.loc).mT, upper=False).mT


class Skewed(nn.Module):
    """A Gaussian whose margins are sinh-arcsinh distributions.

    Arguments:
        loc: m, shape (D,).
        scale: s, shape (D,).
        mixing: R, shape (D, D), lower triangular.
        skew: a, shape (D,).
        tail: log b, shape (D,).
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, mixing: Tensor, skew: Tensor, tail: Tensor
    ):
        super().__init__()
        self.mixed = Gaussian(torch.zeros_like(loc), mixing)
        self.loc, self.scale = nn.Parameter(loc), nn.Parameter(scale)
        self.skew, self.tail = nn.Parameter(skew), nn.Parameter(tail)

    def forward(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """u at ε of shape (S, D), and log |∂u/∂ε|, shape (S,)."""
        mixing = self.mixed.scale
        return skewed(eps, (self.loc, self.scale, mixing, self.skew, self.tail))

    def inverse(self, u: Tensor) -> Tensor:
        """ε at u of shape (S, D)."""
        b = self.tail.exp()
        t = (u - self.loc) / self.scale
        v = ((t * b + (self.skew * b).sinh()).asinh() / b - self.skew).sinh()
        return self.mixed.inverse(v)


def skewed(eps: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``Skewed`` as a function of its parameters: u, shape (S, D), and log |∂u/∂ε|, shape (S,)."""
    loc, scale, mixing, skew, tail = parameters
    v, b = eps @ mixing.mT, tail.exp()
    inner = (v.asinh() + skew) * b
    t = (inner.sinh() - (skew * b).sinh()) / b
    log_slope = inner.cosh().log() - (v * v + 1).log() / 2
    log_det = mixing.diagonal().log().sum() + (log_slope + scale.log()).sum(-1)
    return loc + scale * t, log_det


class LowRank(nn.Module):
    """u = m + s · (ε + Q (L − I) Qᵀ ε), a Gaussian with a diagonal and a few more directions.

    Arguments:
        loc: m, shape (D,).
        scale: s, shape (D,).
        basis: Q, shape (D, K), with orthonormal columns.
        factor: L, shape (K, K), lower triangular.
    """

    def __init__(self, loc: Tensor, scale: Tensor, basis: Tensor, factor: Tensor):
        super().__init__()
        self.loc, self.scale = nn.Parameter(loc), nn.Parameter(scale)
        self.basis, self.factor = nn.Parameter(basis), nn.Parameter(factor)

    def forward(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """u at ε of shape (S, D), and log |∂u/∂ε|, shape ()."""
        along = eps @ self.basis
        moved = eps + (along @ self.factor.mT - along) @ self.basis.mT
        log_det = self.scale.log().sum() + self.factor.diagonal().log().sum()
        return self.loc + self.scale * moved, log_det

    def inverse(self, u: Tensor) -> Tensor:
        """ε at u of shape (S, D)."""
        moved = (u - self.loc) / self.scale
        along = moved @ self.basis
        solve = torch.linalg.solve_triangular
        back = solve(self.factor, along.mT, upper=False).mT
        return moved + (back - along) @ self.basis.mT


class Chain(nn.Module):
    """One map after another: u = f_K(… f_1(ε)).

    Arguments:
        maps: f_1 to f_K.
    """

    def __init__(self, *maps: nn.Module):
        super().__init__()
        self.maps = nn.ModuleList(maps)

    @property
    def loc(self) -> Tensor:
        """The image of the origin, shape (D,)."""
        first: Any = self.maps[0]
        return self(torch.zeros_like(first.loc)[None])[0][0]

    def forward(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """u at ε of shape (S, D), and log |∂u/∂ε|, shape () or (S,)."""
        u, log_det = eps, eps.new_zeros(())
        for map_ in self.maps:
            u, more = map_(u)
            log_det = log_det + more
        return u, log_det

    def inverse(self, u: Tensor) -> Tensor:
        """ε at u of shape (S, D)."""
        for map_ in reversed(self.maps):
            u = map_.inverse(u)  # pyright: ignore[reportCallIssue]
        return u


Approximation = Gaussian | LowRank | Skewed | Chain


@torch.no_grad()
def deviations(part: Approximation) -> Tensor:
    """Standard deviations of u, shape (D,); estimated by draws, unless the part is Gaussian."""
    if isinstance(part, Gaussian):
        return part.scale if part.scale.dim() == 1 else part.scale.norm(dim=1)
    return part(torch.randn(1000, *part.loc.shape, dtype=part.loc.dtype))[0].std(0)


@torch.no_grad()
def composed(inner: Gaussian, outer: Any) -> Approximation:
    """outer ∘ inner, for an outer approximation; one Gaussian, where both are of full rank."""
    if isinstance(outer, Gaussian) and outer.scale.dim() == inner.scale.dim() == 2:
        return Gaussian(outer(inner.loc[None])[0][0], outer.scale @ inner.scale)
    if isinstance(outer, Chain):
        first = composed(inner, outer.maps[0])
        if isinstance(first, Gaussian):
            return Chain(first, *outer.maps[1:])
    return Chain(inner, outer)


class Mixture(TorchDistribution):
    """A mixture of approximations, over vectors u.

    Arguments:
        parts: the components.
        log_probs: their log-probabilities, shape (K,).
    """

    arg_constraints: ClassVar[Any] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    support: Any = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, parts: Sequence[Approximation], log_probs: Tensor):
        self.parts, self.log_probs = parts, log_probs.log_softmax(0)
        self.has_rsample = len(parts) == 1
        loc = parts[0].loc
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return super().expand(torch.Size(batch_shape), _instance)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Independent draws, shape (*sample_shape, D)."""
        shape = torch.Size(sample_shape)
        num = shape.numel()
        eps = self.log_probs.new_empty(num, *self.event_shape).normal_()
        which = torch.multinomial(self.log_probs.exp(), num, replacement=True)
        u = torch.empty_like(eps)
        with torch.no_grad():
            for k, part in enumerate(self.parts):
                u[which == k] = part(eps[which == k])[0]
        return u.reshape(*shape, *self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of a single component, differentiable in its parameters."""
        shape = torch.Size(sample_shape)
        eps = self.log_probs.new_empty(shape.numel(), *self.event_shape).normal_()
        return self.parts[0](eps)[0].reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(u) in nats, of u of shape (*, D); shape (*,)."""
        u = value.reshape(-1, *self.event_shape)
        terms = [
            log_prob + _log_density(part, u)
            for part, log_prob in zip(self.parts, self.log_probs, strict=True)
        ]
        return torch.stack(terms).logsumexp(0).reshape(value.shape[:-1])


def _log_density(part: Approximation, u: Tensor) -> Tensor:
    eps = part.inverse(u)
    _, log_det = part(eps)
    half = eps.square().sum(-1) / 2 + eps.shape[-1] * math.log(2 * math.pi) / 2
    return -half - log_det


class AutoMixture(AutoContinuous):
    """A guide whose unconstrained latents have a mixture of Gaussians, skewed or not.

    Arguments:
        model: a Pyro model.
        parts: the components.
        log_probs: their log-probabilities, shape (K,).
    """

    def __init__(self, model: Any, parts: Sequence[Approximation], log_probs: Tensor):
        super().__init__(model, init_loc_fn=init_to_origin)
        self.parts = nn.ModuleList(parts)
        self.register_buffer("log_probs", log_probs)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Mixture:
        """The distribution of u."""
        return Mixture(list(self.parts), self.log_probs)  # pyright: ignore


def pair_of(
    model: Callable[[Any], Any],
    batch: Any,
    parts: Sequence[Approximation],
    log_probs: Tensor | None = None,
) -> InFloat64:
    """The model with a guide of these approximations.

    Arguments:
        model: a Pyro model.
        batch: its data, in float64.
        parts: the components.
        log_probs: their log-probabilities, shape (K,); equal by default.
    """
    seen = continuous(model, latent_sites(model, batch))
    if log_probs is None:
        log_probs = torch.zeros(len(parts), dtype=torch.float64)
    return InFloat64(Pair(model, AutoMixture(seen, parts, log_probs)))
