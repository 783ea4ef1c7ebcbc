"""Independent normal variables in increasing order: a prior that identifies exchangeable
components.

With x_k ~ N(m_k, s_k) independent, and Z the probability that they come out in order,

    p(x) = Π_k N(x_k | m_k, s_k) / Z    on x_1 < x_2 < … < x_K, and 0 elsewhere.

Z is known in two cases. If all variables have the same mean and scale, every order is equally
probable, so Z = 1 / K!, and K sorted draws are a draw from p. For two variables, x_2 − x_1 is
normal with mean m = m_2 − m_1 and variance s² = s_1² + s_2², so Z = Φ(m / s); the difference is
drawn from that normal truncated at zero, and x_1 given the difference from its normal conditional.

A mixture or a hidden Markov model has K! modes that differ only in the labels of the components;
the ordered set contains one of them. Many programs use the density Π_k N(x_k | m_k, s_k) there
without Z, so their evidence is too small by the factor Z.

Reference: Identifying Bayesian Mixture Models, Michael Betancourt, 2017.
"""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

__all__ = ["OrderedNormal"]

# quadrature points within ± 12 standard deviations; the integrand is smooth, so the result has
# float64 precision
_GRID = 4001


class OrderedNormal(TorchDistribution):
    """Independent normal variables, given that they are in increasing order; normalised.

    Arguments:
        loc: means m of the normals before ordering, shape (*batch_shape, K).
        scale: standard deviations s of the normals before ordering, broadcast with `loc`.
        validate_args: whether to check parameters and values; by default as torch does.

    Raises:
        ValueError: K is 1; or K > 2 and the means or the scales differ, so that Z has no closed
            form.

    Reference: Identifying Bayesian Mixture Models, Michael Betancourt, 2017.

    Examples:
        >>> import torch
        >>> from vilvm.distributions.ordered import OrderedNormal
        >>> prior = OrderedNormal(torch.zeros(3), 1.0)
        >>> prior.log_prob(torch.tensor([-1.0, 0.0, 1.0]))  # log 3! − log (2π)^{3/2} − 1
        tensor(-1.9651)
        >>> prior.mean
        tensor([-0.8463,  0.0000,  0.8463])
    """

    arg_constraints: Any = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.ordered_vector  # type: ignore[assignment]

    def __init__(
        self, loc: Tensor, scale: Tensor | float, validate_args: bool | None = None
    ):
        self.loc, self.scale = broadcast_all(loc, scale)
        _check_orderable(self.loc, self.scale)
        super().__init__(
            self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OrderedNormal":
        """The same distribution, its parameters expanded to `batch_shape`."""
        shape = torch.Size(batch_shape) + self.event_shape
        new = OrderedNormal(
            self.loc.expand(shape), self.scale.expand(shape), validate_args=False
        )
        # the parameters have been checked, values have not
        new._validate_args = self._validate_args
        return new

    @property
    def log_normaliser(self) -> Tensor:
        """log Z, the log-probability that independent draws are ordered; shape (*batch_shape,)."""
        if self.event_shape[0] == 2:
            m, s = self._difference()
            return torch.special.log_ndtr(m / s)
        log_z = -math.lgamma(self.event_shape[0] + 1)
        return self.loc.new_full((), log_z).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats, for `value` of shape (..., K) in increasing order; shape (...,)."""
        if self._validate_args:
            self._validate_sample(value)
        unordered = torch.distributions.Normal(self.loc, self.scale, False).log_prob(
            value
        )
        return unordered.sum(-1) - self.log_normaliser

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape (*sample_shape, *batch_shape, K), in increasing order."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        if self.event_shape[0] > 2:
            return (self.loc + self.scale * noise).sort(-1).values
        m, s = self._difference()
        difference = self._positive_difference(m, s, shape[:-1]).to(noise)
        difference = difference.clamp_min(torch.finfo(noise.dtype).tiny)
        s1, s2 = self.scale.unbind(-1)
        conditional_mean = self.loc[..., 0] - (s1 / s).square() * (difference - m)
        first = conditional_mean + s1 * s2 / s * noise[..., 0]
        return torch.stack([first, first + difference], -1)

    def _positive_difference(self, m: Tensor, s: Tensor, shape: torch.Size) -> Tensor:
        """Draws from N(m, s²) truncated to positive values, float64."""
        # a uniform fraction of the probability above zero, as an upper tail probability, since a
        # small number loses no digits
        tail = torch.special.erfc(-(m / s).double() / math.sqrt(2)) / 2
        uniform = torch.rand(shape, dtype=torch.float64, device=self.loc.device)
        return m - s * torch.special.ndtri((tail * uniform).clamp_min(1e-300))

    @property
    def mean(self) -> Tensor:
        """E x, shape (*batch_shape, K), in closed form for K = 2, else by quadrature."""
        if self.event_shape[0] > 2:
            return self.loc + self.scale * _mean_of_sorted(self.event_shape[0]).to(
                self.loc
            )
        m, s = self._difference()
        # E (x₂ − x₁) = m + s φ(m / s) / Φ(m / s); the excess over m is divided between the two
        # variables in proportion to their variances.
        log_density = -(m / s).square() / 2 - math.log(2 * math.pi) / 2
        excess = (log_density - torch.special.log_ndtr(m / s)).exp() / s
        signs = self.loc.new_tensor([-1.0, 1.0])
        return self.loc + excess.unsqueeze(-1) * self.scale.square() * signs

    def _difference(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x₂ − x₁ before ordering."""
        return self.loc[..., 1] - self.loc[..., 0], self.scale.norm(dim=-1)


def _check_orderable(loc: Tensor, scale: Tensor) -> None:
    if not loc.dim() or loc.shape[-1] < 2:
        raise ValueError(
            f"OrderedNormal: loc has shape {tuple(loc.shape)}; give at least two means, since one "
            "variable has no order."
        )
    size = loc.shape[-1]
    if size > 2 and not all(bool((p == p[..., :1]).all()) for p in (loc, scale)):
        raise ValueError(
            f"OrderedNormal: the {size} means or scales differ, and the probability of their "
            "order is known in closed form for two variables only; give all the same mean and "
            "scale."
        )


def _mean_of_sorted(size: int) -> Tensor:
    """The means of the sorted values of `size` standard normals, shape (size,), float64.

    ∫ z K C(K−1, k−1) Φᵏ⁻¹ (1 − Φ)ᴷ⁻ᵏ φ dz
    """
    z = torch.linspace(-12, 12, _GRID, dtype=torch.float64)
    k = torch.arange(size, dtype=torch.float64).unsqueeze(-1)
    log_count = math.lgamma(size + 1) - torch.lgamma(k + 1) - torch.lgamma(size - k)
    log_density = log_count + k * torch.special.log_ndtr(z)
    log_density = (
        log_density + (size - 1 - k) * torch.special.log_ndtr(-z) - z.square() / 2
    )
    values = log_density.exp() @ z * (24 / (_GRID - 1)) / math.sqrt(2 * math.pi)
    return (values - values.flip(0)) / 2  # symmetric by its definition
