"""Whether a noisy series still drifts, its noise being correlated from one record to the next.

Of y_t at evenly spaced times a quadratic is fitted, so that a curve's bend does not count as noise: with orthonormal polynomials u₁, u₂,

    y = ȳ + c₁ u₁ + c₂ u₂ + e,    t = c₁ / s,  s² = Σ e² / (n − 3),    φ̂ = Σ e_t e_{t−1} / Σ e_t².

Where the noise is first-order autoregressive, t and φ̂ have a joint distribution that depends on n and φ alone, and is simulated: the p-value
is the share of simulations without drift, of those with the nearest φ̂, whose t is as large. So what φ̂ misses of φ in a short series (it
is biased downwards, and noisy) is in the p-value. For n from 8 to 100 the false-alarm rate is the nominal one or less for φ up to about
0.8, and at φ = 0.95 up to four times it: of a few records, a random walk cannot be told from a drift.

A curve that rises steeply first is no quadratic, and what is left of it looks like correlated noise. So a second test counts the rises from
one record to the next: of a random walk they are Binomial(n − 1, ½), and of autoregressive noise, whose steps turn back, nearer to half. The
smaller p-value is taken, without a correction: where one test is at its level, the other is far below.

Reference: simulating an estimate's distribution over all φ, so that its bias is accounted for, follows Exactly Median-Unbiased Estimation
of First Order Autoregressive/Unit Root Models, Donald W. K. Andrews, 1993; the statistic and its use on an ELBO are ours.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import bdtrc

__all__ = ["LEAST", "Trend", "trend"]

LEAST = 8  # records
_SIMULATIONS, _NEAREST = 20_000, 1_000


class Trend(NamedTuple):
    """A slope, in units of y by units of time.

    Arguments:
        slope: estimated.
        lower, upper: limits of its one-sided confidence intervals, each at 1 − false_alarm.
        rising: p-value of no rise.
        falling: p-value of no fall, likewise the smaller of the two tests'.
        correlation: φ̂ of the noise, as estimated.
    """

    slope: float
    lower: float
    upper: float
    rising: float
    falling: float
    correlation: float


def trend(times: np.ndarray, values: np.ndarray, false_alarm: float = 0.01) -> Trend:
    """The slope of `values` over `times`, which are about evenly spaced, and whether it differs from zero.

    Arguments:
        times: shape (n,), increasing.
        values: shape (n,), n at least ``LEAST``.
        false_alarm: one-sided, of the limits.

    Raises:
        ValueError: too few values.

    Example:
        >>> import numpy as np
        >>> found = trend(np.arange(20.0), 0.1 * np.arange(20.0) + 0.01 * np.cos(np.arange(20.0) ** 2))
        >>> round(found.slope, 2), found.rising < 0.01, found.falling > 0.9
        (0.1, True, True)
    """
    if len(values) < LEAST:
        raise ValueError(f"trend needs at least {LEAST} values; got {len(values)}.")
    c, s, phi = _statistics(values[None] - values.mean(), _polynomials(times))
    null = _near(len(values), float(phi[0]))
    s = max(float(s[0]), 1e-12 * (1 + float(np.abs(values).max())))  # of a straight line without noise
    t, length = float(c[0]) / s, float(np.linalg.norm(times - times.mean()))
    limits = np.quantile(null, [1 - false_alarm, false_alarm])
    return Trend(
        slope=t * s / length,
        lower=float(t - limits[0]) * s / length,
        upper=float(t - limits[1]) * s / length,
        rising=min(float((null >= t).mean()), _sign_test(values)),
        falling=min(float((null <= t).mean()), _sign_test(-values)),
        correlation=float(phi[0]),
    )


def _sign_test(values: np.ndarray) -> float:
    """The probability of as many rises from one value to the next, were rises and falls equally likely."""
    steps = np.diff(values)
    return _at_least(int((steps > 0).sum()), int((steps != 0).sum()))


def _at_least(k: int, n: int) -> float:
    """P(Binomial(n, ½) ≥ k)."""
    return 1.0 if k == 0 else float(bdtrc(k - 1, n, 0.5))


def _polynomials(times: np.ndarray) -> np.ndarray:
    """Orthonormal polynomials of degree 1 and 2, shape (n, 2)."""
    u = times - times.mean()
    u = u / np.linalg.norm(u)
    v = u**2 - (u**2).mean()
    v = v - (v @ u) * u
    return np.stack([u, v / np.linalg.norm(v)], -1)


def _statistics(centred: np.ndarray, polynomials: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c₁, s and φ̂ of every row of shape (n,)."""
    c = centred @ polynomials
    e = centred - c @ polynomials.T
    squares = (e**2).sum(-1)
    phi = (e[:, 1:] * e[:, :-1]).sum(-1) / np.maximum(squares, 1e-300)
    return c[:, 0], np.sqrt(squares / (centred.shape[-1] - 3)), phi


def _near(n: int, phi: float) -> np.ndarray:
    """t of the simulations of length n whose φ̂ is nearest to `phi`."""
    t, phis = _simulated(n)
    start = int(np.clip(np.searchsorted(phis, phi) - _NEAREST // 2, 0, len(phis) - _NEAREST))
    return t[start : start + _NEAREST]


@lru_cache(maxsize=64)
def _simulated(n: int) -> tuple[np.ndarray, np.ndarray]:
    """t and φ̂, in the order of φ̂, of autoregressive noise without drift, φ of all sizes and of large ones above all."""
    rng = np.random.default_rng(0)
    few = _SIMULATIONS // 3
    phi = np.concatenate([rng.uniform(-0.5, 0.98, few), 0.99 - 1.2 * rng.uniform(size=_SIMULATIONS - few) ** 2])
    noise = rng.standard_normal((n, _SIMULATIONS))
    y = np.empty_like(noise)
    y[0] = noise[0] / np.sqrt(1 - phi**2)
    for i in range(1, n):
        y[i] = phi * y[i - 1] + noise[i]
    c, s, found = _statistics((y - y.mean(0)).T, _polynomials(np.arange(float(n))))
    order = np.argsort(found)
    return (c / s)[order], found[order]
