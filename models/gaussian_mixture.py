"""A Bayesian mixture of normals: components are summed out, their parameters are inferred.

Generative story. Each datum x_n ∈ ℝ belongs to one of K components:

    π ~ Dirichlet(α, …, α),    μ_k ~ N(m, s) subject to μ_1 < … < μ_K,    σ_k ~ HalfNormal(t),
    z_n ~ Categorical(π),      x_n ~ N(μ_{z_n}, σ_{z_n}).

The order of the means selects one of the K! equivalent labellings of the components; its prior
density is K! Π_k N(μ_k | m, s) (``vilvm.distributions.ordered``), so that the evidence is that of
the unlabelled mixture.

Discrete latents. The guide is over θ = (π, μ, σ) alone. z is marked for enumeration, and
``TraceEnum_ELBO`` sums it out datum by datum,

    log p(x | θ) = Σ_n log Σ_k π_k N(x_n | μ_k, σ_k),

a bound without the noise of sampling z and without the gap of a factorised q(z). With
``marginal=True`` the same sum is part of the model: a density of x given θ without z, to which
``Trace_ELBO`` and all other methods apply.

Given θ, the posterior of z is exact: p(z_n = k | x, θ) ∝ π_k N(x_n | μ_k, σ_k), the
responsibilities. ``states`` samples or maximises z by Pyro's ``infer_discrete``.

References: On Bayesian Analysis of Mixtures with an Unknown Number of Components, Sylvia
Richardson and Peter J. Green, 1997; Tensor Variable Elimination for Plated Factor Graphs,
Obermeyer, Bingham, Jankowiak, Pradhan, Chiu, Rush and Goodman, 2019.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, infer_discrete
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.autoguide.initialization import init_to_mean
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from vilvm.distributions.ordered import OrderedNormal
from vilvm.lvm import module_parameters, rebuildable

__all__ = ["GaussianMixture", "objective", "tiny"]

_SHARED = ["pi", "mu", "sigma"]


@rebuildable
class GaussianMixture(nn.Module):
    """A Bayesian mixture of K normals over numbers, with an autoguide over π, μ and σ.

    Train it with ``objective()``, or with any objective if `marginal`.

    Arguments:
        num_components: K, at least 2.
        concentration: α of the Dirichlet prior of π.
        loc: m of the normal prior of the means.
        scale: s of the normal prior of the means.
        noise: t of the half-normal prior of the standard deviations.
        marginal: whether the model sums over z itself and has no site z.
        autoguide: makes the guide of a model of π, μ and σ: ``AutoMultivariateNormal``,
            ``AutoNormal``, ``AutoIAFNormal``, or ``AutoDelta`` for the maximum a posteriori.

    Raises:
        ValueError: num_components is below 2, or a scale is not positive.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.gaussian_mixture import GaussianMixture, objective
        >>> x = torch.tensor([-2.1, -1.9, 2.0, 2.2])
        >>> lvm = GaussianMixture(num_components=2)
        >>> vilvm.fit(lvm, x, steps=20, objective=objective()).stopped
        'finished'
        >>> lvm.responsibilities(x).shape
        torch.Size([4, 2])
    """

    concentration: Tensor
    loc: Tensor
    scale: Tensor
    noise: Tensor

    def __init__(
        self,
        num_components: int = 2,
        *,
        concentration: float = 5.0,
        loc: float = 0.0,
        scale: float = 2.0,
        noise: float = 2.0,
        marginal: bool = False,
        autoguide: Callable[[Any], Any] | None = None,
    ):
        super().__init__()
        if num_components < 2:
            raise ValueError(
                f"GaussianMixture: num_components must be at least 2; got {num_components}."
            )
        if min(concentration, scale, noise) <= 0:
            raise ValueError(
                "GaussianMixture: concentration, scale and noise must be positive; got "
                f"{concentration}, {scale}, {noise}."
            )
        self.marginal = marginal
        settings = {
            "concentration": concentration,
            "loc": loc,
            "scale": scale,
            "noise": noise,
        }
        for name, value in settings.items():
            self.register_buffer(name, torch.full((num_components,), float(value)))
        shared = poutine.block(self.model, expose=_SHARED)
        make_guide = autoguide or partial(
            AutoMultivariateNormal, init_loc_fn=init_to_mean
        )
        self.autoguide = make_guide(shared)
        with module_parameters(self):
            # creates its parameters, so that a state_dict contains them
            self.autoguide(torch.zeros(1))

    def model(self, x: Tensor) -> Any:
        """p(x | z, π, μ, σ) p(z | π) p(π, μ, σ), or p(x | π, μ, σ) p(π, μ, σ) if `marginal`; x has
        shape (batch,).
        """
        return self._joint(x, self.marginal)

    def guide(self, x: Tensor) -> Any:
        """q(π, μ, σ)."""
        return self.autoguide(x)

    def _joint(self, x: Tensor, marginal: bool) -> Any:
        pi = pyro.sample("pi", dist.Dirichlet(self.concentration))
        mu = pyro.sample("mu", OrderedNormal(self.loc, self.scale))
        sigma = pyro.sample("sigma", dist.HalfNormal(self.noise).to_event(1))
        with pyro.plate("data", len(x)):
            if marginal:
                mixture = dist.MixtureSameFamily(
                    dist.Categorical(pi), dist.Normal(mu, sigma)
                )
                return pyro.sample("x", mixture, obs=x)
            z = pyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
            component = dist.Normal(Vindex(mu)[..., z], Vindex(sigma)[..., z])
            pyro.sample("x", component, obs=x)
            return z

    def log_likelihood(
        self, x: Tensor, given: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """log p(x | π, μ, σ), z summed out, exact, in nats per datum.

        Arguments:
            x: shape (num_data,).
            given: values of "pi", "mu" and "sigma", each of shape (*draws, K), as from
                ``vilvm.posterior``; by default the guide's median.

        Returns:
            Shape (*draws, num_data).
        """
        return self._by_component(x, given).logsumexp(-1)

    def responsibilities(
        self, x: Tensor, given: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """p(z = k | x, π, μ, σ), exact; the arguments are those of ``log_likelihood``.

        Returns:
            Shape (*draws, num_data, K). Their mean over posterior draws is p(z = k | x).
        """
        return self._by_component(x, given).softmax(-1)

    @torch.no_grad()
    def states(
        self, x: Tensor, given: Mapping[str, Tensor] | None = None, temperature: int = 0
    ) -> Tensor:
        """z given x and one value of the parameters, by Pyro's ``infer_discrete``.

        Arguments:
            x: shape (num_data,).
            given: values of "pi", "mu" and "sigma", each of shape (K,); by default the guide's
                median.
            temperature: 0 for the most probable component, 1 for a draw from p(z | x, π, μ, σ).

        Returns:
            Shape (num_data,), whole numbers from 0.
        """
        fixed = poutine.condition(self._joint, data=dict(self._values(given)))
        inferred: Any = infer_discrete(
            fixed, first_available_dim=-2, temperature=temperature
        )
        return inferred(x, False)

    @torch.no_grad()
    def median(self) -> dict[str, Tensor]:
        """The guide's median of π, μ and σ, transformed from its unconstrained space."""
        with module_parameters(self):
            medians: Any = self.autoguide.median()
        return {name: value.detach() for name, value in medians.items()}

    def _values(self, given: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        if given is None:
            return self.median()
        return given

    def _by_component(self, x: Tensor, given: Mapping[str, Tensor] | None) -> Tensor:
        """log π_k + log N(x | μ_k, σ_k), shape (*draws, num_data, K)."""
        values = self._values(given)
        pi, mu, sigma = (values[name].unsqueeze(-2) for name in _SHARED)
        return pi.log() + dist.Normal(mu, sigma).log_prob(x.unsqueeze(-1))


def objective() -> TraceEnum_ELBO:
    """The ELBO with z summed out.

    Returns:
        An objective for ``vilvm.fit`` or ``pyro.infer.SVI``.

    Examples:
        >>> from vilvm.models.gaussian_mixture import objective
        >>> type(objective()).__name__
        'TraceEnum_ELBO'
    """
    return TraceEnum_ELBO(max_plate_nesting=1)


def tiny() -> tuple[GaussianMixture, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.gaussian_mixture import tiny
        >>> lvm, batch = tiny()
    """
    return GaussianMixture(num_components=2), torch.randn(5)
