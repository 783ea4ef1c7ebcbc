"""Time series: an autoregression AR(5), and an ARMA(1, 1).

Generative story of the autoregression. Each value is regressed on the last K:

    α, β_k ~ N(0, 10),    σ ~ HalfCauchy(2.5),    y_t ~ N(α + Σ_k β_k y_{t−k}, σ)   for t > K.

Given the series, its rows (y_{t−1}, …, y_{t−K}) and y_t are data of a linear regression.

Generative story of the ARMA. With y_0 = μ and e_0 = 0,

    μ ~ N(0, 10),    φ, θ ~ N(0, 2),    σ ~ HalfCauchy(2.5),
    ν_t = μ + φ y_{t−1} + θ e_{t−1},    e_t ~ N(0, σ),    y_t = ν_t + e_t.

Errors without a loop over time. With the shift (B e)_t = e_{t−1} and r_t = y_t − μ − φ y_{t−1},
the errors solve (I + θ B) e = r. B is nilpotent, so that the Neumann series of the inverse is
finite, and it is a product of ⌈log₂ T⌉ factors:

    e = Σ_{k<T} (−θ B)ᵏ r = Π_j (I + (−θ B)^{2^j}) r.

References: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024; Time Series Analysis: Forecasting and Control, George Box and Gwilym
Jenkins, 1970.
"""

import pyro
import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import pad

from .plates import observe_linear
from .problem import Given, Statement, Table

__all__ = ["POSTERIORS", "arma11", "autoregression", "moving_average_errors"]


def autoregression(data: tuple[Tensor, Tensor]) -> None:
    """AR(K) given the first K values.

    Arguments:
        data: the last K values, the latest first, shape (T − K, K), and the next, shape (T − K,).

    Reference: Time Series Analysis: Forecasting and Control, Box and Jenkins, 1970.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.posteriordb.time_series import autoregression
        >>> latents = {"alpha": torch.tensor(0.0), "beta": torch.zeros(1)}
        >>> model = pyro.condition(autoregression, latents | {"sigma": torch.tensor(2.5)})
        >>> pyro.poutine.trace(model).get_trace((torch.ones(2, 1), torch.zeros(2))).log_prob_sum()
        tensor(-12.1745)
    """
    past, y = data
    num_lags = past.shape[1]
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(y.new_zeros(num_lags), 10.0).to_event(1))
    observe_linear(data, beta, pyro.sample("sigma", dist.HalfCauchy(2.5)), alpha)


def arma11(y: Tensor) -> None:
    """ARMA(1, 1) of independent series, which share its parameters.

    Arguments:
        y: shape (num_series, T); one series is one datum.

    Reference: Time Series Analysis: Forecasting and Control, Box and Jenkins, 1970.

    Examples:
        >>> import pyro, torch
        >>> from vilvm.models.posteriordb.time_series import arma11
        >>> latents = {name: torch.tensor(0.0) for name in ("mu", "phi", "theta")}
        >>> model = pyro.condition(arma11, latents | {"sigma": torch.tensor(2.5)})
        >>> pyro.poutine.trace(model).get_trace(torch.zeros(1, 2)).log_prob_sum()
        tensor(-12.1772)
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    mu, phi, theta, sigma = (p.unsqueeze(-1) for p in (mu, phi, theta, sigma))
    with pyro.plate("data", len(y)):
        previous = pad(y[:, :-1] - mu, (1, 0)) + mu  # the first is μ
        error = moving_average_errors(y - mu - phi * previous, theta)
        # every value given those before it
        pyro.sample("y", dist.Normal(y - error, sigma).to_event(1), obs=y)


def moving_average_errors(r: Tensor, theta: Tensor) -> Tensor:
    """The errors e_t = r_t − θ e_{t−1}, e_0 = 0, in ⌈log₂ T⌉ steps.

    Arguments:
        r: shape (..., T).
        theta: θ, shape (..., 1).

    Returns:
        e, shape (..., T).

    Examples:
        >>> import torch
        >>> from vilvm.models.posteriordb.time_series import moving_average_errors
        >>> moving_average_errors(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.5]))
        tensor([ 1.0000, -0.5000,  1.2500])
    """
    error, power, lag = r, -theta, 1
    while lag < r.shape[-1]:
        error = error + power * pad(error[..., :-lag], (lag, 0))
        power, lag = power * power, 2 * lag
    return error


# The data of each
# --------------------------------------------------------------------------------------------


def _autoregression(given: Given) -> Statement:
    y, num_lags = given["y"], given["K"]
    past = y.unfold(0, num_lags, 1)[:-1].flip(1)
    data = past, y[num_lags:]
    return Statement(autoregression, data, ("alpha", "beta", "sigma"))


def _arma(given: Given) -> Statement:
    return Statement(arma11, given["y"][None], ("mu", "phi", "theta", "sigma"))


POSTERIORS: Table = {
    "arK-arK": _autoregression,
    "arma-arma11": _arma,
}
