"""A Bayesian hidden Markov model: states are summed out, transitions and emissions are inferred.

Generative story. A chain of states z_t, each one of K, emits a sequence x_1, …, x_T of numbers:

    A_k ~ Dirichlet(α_k),    μ ~ N(m, s) subject to μ_1 < … < μ_K,    σ_k ~ HalfNormal(t) or known,
    z_1 ~ Categorical(ρ),    z_t ~ Categorical(A_{z_{t−1}}),    x_t ~ N(μ_{z_t}, σ_{z_t}).

The initial distribution ρ is known, by default uniform. A batch is a set of independent sequences
of one length; a single series is a batch of one. The order of the means selects one of the
equivalent labellings of the states (``vilvm.distributions.ordered``).

Discrete latents. The guide is over θ = (A, μ, σ) alone; z is marked for enumeration, and
``TraceEnum_ELBO`` sums it out. The sum over Kᵀ paths is that of the forward algorithm, a product
of matrices in the (logsumexp, +) algebra,

    log p(x | θ) = log Σ ρ_{z_1} b_1(z_1) Π_{t>1} A_{z_{t−1} z_t} b_t(z_t)
                 = log (ρ ∘ b_1)ᵀ A B_2 A B_3 … A B_T 1,    b_t(k) = N(x_t | μ_k, σ_k),

which ``forward`` multiplies pair by pair in log₂ T steps. With ``marginal=True`` it is part of the
model as the density of whole sequences, to which ``Trace_ELBO`` and all other methods apply; a
step is then some fifteen times faster at T = 100.

Given θ, the posterior of the states is exact. log p(x | θ) is the log-normaliser of p(z | x, θ),
and 1[z_t = k] is the sufficient statistic of log b_t(k); so its gradient is forward–backward
smoothing: ∂ log p(x | θ) / ∂ log b_t(k) = p(z_t = k | x, θ). Pyro's ``infer_discrete`` samples a
path, or finds the most probable one (Viterbi).

References: A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition,
Lawrence R. Rabiner, 1989; Tensor Variable Elimination for Plated Factor Graphs, Obermeyer,
Bingham, Jankowiak, Pradhan, Chiu, Rush and Goodman, 2019; Temporal Parallelization of Bayesian
Smoothers, Simo Särkkä and Ángel García-Fernández, 2021.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from pyro.infer import TraceEnum_ELBO, infer_discrete
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.autoguide.initialization import init_to_mean
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from vilvm.distributions.ordered import OrderedNormal
from vilvm.lvm import module_parameters, rebuildable

__all__ = ["HiddenMarkov", "Sequence", "forward", "objective", "smooth", "tiny"]

_IMPOSSIBLE = -1e5


def forward(log_start: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """log p(x_1, …, x_T), summed over all paths of states, by the forward algorithm.

    Arguments:
        log_start: log p(z_1 = k), shape (..., K).
        log_transition: log p(z_t = j | z_{t−1} = i), shape (..., K, K), i before j.
        log_emission: log p(x_t | z_t = k), shape (..., T, K).

    Returns:
        Shape (...,), in nats.

    Reference: Temporal Parallelization of Bayesian Smoothers, Simo Särkkä and Ángel
    García-Fernández, 2021.

    Examples:
        >>> import torch
        >>> from vilvm.models.hidden_markov import forward
        >>> half = torch.full((2, 2), 0.5).log()
        >>> forward(half[0], half, torch.tensor([[0.1, 0.1], [0.3, 0.3], [0.2, 0.2]]).log()).exp()
        tensor(0.0060)
    """
    # (..., T − 1, K, K)
    steps = log_transition.unsqueeze(-3) + log_emission[..., 1:, :].unsqueeze(-2)
    while steps.shape[-3] > 1:
        even = 2 * (steps.shape[-3] // 2)
        left = steps[..., 0:even:2, :, :]
        right = steps[..., 1:even:2, :, :]
        products = (left.unsqueeze(-1) + right.unsqueeze(-3)).logsumexp(-2)
        steps = torch.cat([products, steps[..., even:, :, :]], -3)
    first = log_start + log_emission[..., 0, :]
    if not steps.shape[-3]:  # T = 1
        return first.logsumexp(-1)
    return (first + steps[..., 0, :, :].logsumexp(-1)).logsumexp(-1)


def smooth(log_start: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """p(z_t = k | x_1, …, x_T), the gradient of ``forward``.

    Arguments:
        log_start: log p(z_1 = k), shape (..., K).
        log_transition: log p(z_t = j | z_{t−1} = i), shape (..., K, K), i before j.
        log_emission: log p(x_t | z_t = k), shape (..., T, K).

    Returns:
        Shape (..., T, K).

    Examples:
        >>> import torch
        >>> from vilvm.models.hidden_markov import smooth
        >>> half = torch.full((2, 2), 0.5).log()
        >>> smooth(half[0], half, torch.tensor([[0.1, 0.3], [0.2, 0.2]]).log())
        tensor([[0.2500, 0.7500],
                [0.5000, 0.5000]])
    """
    # a small positive probability replaces 0: the logarithm of a sum of zeros has no gradient
    log_start, log_transition = (
        p.detach().clamp_min(_IMPOSSIBLE) for p in (log_start, log_transition)
    )
    shape = torch.broadcast_shapes(
        log_start.shape[:-1], log_transition.shape[:-2], log_emission.shape[:-2]
    )
    with torch.enable_grad():
        log_emission = log_emission.detach().expand(*shape, *log_emission.shape[-2:])
        log_emission = log_emission.clone().requires_grad_()
        evidence = forward(log_start, log_transition, log_emission)
        return torch.autograd.grad(evidence.sum(), log_emission)[0]


class Sequence(TorchDistribution):
    """Whole sequences of a hidden Markov model with normal emissions, the states summed out.

    Arguments:
        start: p(z_1), shape (*batch_shape, K).
        transition: p(z_t | z_{t−1}), shape (*batch_shape, K, K).
        mu: mean of the emissions of each state, shape (*batch_shape, K).
        sigma: standard deviation of the emissions of each state, shape (*batch_shape, K).
        length: T.
        validate_args: whether to check parameters and values; by default as torch does.

    Examples:
        >>> import torch
        >>> from vilvm.models.hidden_markov import Sequence
        >>> half = torch.full((2, 2), 0.5)
        >>> fn = Sequence(half[0], half, mu=torch.zeros(2), sigma=torch.ones(2), length=3)
        >>> fn.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    arg_constraints = {  # noqa: RUF012  # type: ignore[assignment]
        "start": constraints.simplex,
        "transition": constraints.independent(constraints.simplex, 1),
        "mu": constraints.real_vector,
        "sigma": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector  # type: ignore[assignment]

    def __init__(
        self,
        start: Tensor,
        transition: Tensor,
        mu: Tensor,
        sigma: Tensor,
        *,
        length: int,
        validate_args: bool | None = None,
    ):
        shape = torch.broadcast_shapes(
            start.shape[:-1], transition.shape[:-2], mu.shape[:-1], sigma.shape[:-1]
        )
        self.start, self.transition = start, transition
        self.mu, self.sigma = mu, sigma
        super().__init__(shape, torch.Size([length]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Sequence":
        """The same distribution, its parameters expanded to `batch_shape`."""
        start, mu, sigma = (
            p.expand(*batch_shape, p.shape[-1])
            for p in (self.start, self.mu, self.sigma)
        )
        transition = self.transition.expand(*batch_shape, *self.transition.shape[-2:])
        length = self.event_shape[0]
        new = Sequence(start, transition, mu, sigma, length=length, validate_args=False)
        # the parameters have been checked, values have not
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats, for `value` of shape (..., T); shape (...,)."""
        if self._validate_args:
            self._validate_sample(value)
        return forward(
            self.start.log(), self.transition.log(), self.log_emission(value)
        )

    def log_emission(self, value: Tensor) -> Tensor:
        """log p(x_t | z_t = k), for `value` of shape (..., T); shape (..., T, K)."""
        mu, sigma = self.mu.unsqueeze(-2), self.sigma.unsqueeze(-2)
        return torch.distributions.Normal(mu, sigma, False).log_prob(
            value.unsqueeze(-1)
        )

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape (*sample_shape, *batch_shape, T), step by step."""
        shape = torch.Size(sample_shape) + self.batch_shape
        z = dist.Categorical(self.start.expand(*shape, -1)).sample()
        drawn: list[Tensor] = []
        for t in range(self.event_shape[0]):
            if t > 0:
                z = dist.Categorical(Vindex(self.transition)[..., z, :]).sample()
            emission = dist.Normal(Vindex(self.mu)[..., z], Vindex(self.sigma)[..., z])
            drawn.append(emission.sample())
        return torch.stack(drawn, -1)


@rebuildable
class HiddenMarkov(nn.Module):
    """A Bayesian hidden Markov model of sequences of numbers, with an autoguide over A, μ and σ.

    Train it with ``objective()``, or with any objective if `marginal`.

    Arguments:
        num_states: K, at least 2.
        concentration: α of the Dirichlet prior of each row of A; 1 is flat.
        loc: m of the normal prior of the means, a number or K numbers (see ``OrderedNormal``).
        scale: s of the normal prior of the means, a number or K numbers.
        noise: the known standard deviation of the emissions; None makes it a latent of each state.
        noise_scale: t of the half-normal prior of that latent.
        start: ρ, K probabilities; uniform by default.
        marginal: whether the model sums over the states itself and has no sites z_t.
        autoguide: makes the guide of a model of A, μ and σ; ``AutoMultivariateNormal`` by default.

    Raises:
        ValueError: num_states is below 2, a scale is not positive, or `start` is not K
            probabilities that sum to one.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.hidden_markov import HiddenMarkov, objective
        >>> x = torch.tensor([[-2.1, -1.9, 2.0, 2.2, 1.8, -2.0]])
        >>> lvm = HiddenMarkov(num_states=2)
        >>> vilvm.fit(lvm, x, steps=20, objective=objective()).stopped
        'finished'
        >>> lvm.states(x).shape, lvm.smoothing(x).shape
        (torch.Size([1, 6]), torch.Size([1, 6, 2]))
    """

    concentration: Tensor
    loc: Tensor
    scale: Tensor
    noise_scale: Tensor
    start: Tensor

    def __init__(
        self,
        num_states: int = 2,
        *,
        concentration: float = 1.0,
        loc: Any = 0.0,
        scale: Any = 2.0,
        noise: float | None = 1.0,
        noise_scale: float = 2.0,
        start: Any = None,
        marginal: bool = False,
        autoguide: Callable[[Any], Any] | None = None,
    ):
        super().__init__()
        if num_states < 2:
            raise ValueError(
                f"HiddenMarkov: num_states must be at least 2; got {num_states}."
            )
        _check_positive(concentration, scale, noise_scale, noise)
        self.marginal, self.noise = marginal, noise
        self.register_buffer("start", _start(start, num_states))
        alpha = torch.full((num_states, num_states), float(concentration))
        self.register_buffer("concentration", alpha)
        for name, value in (
            ("loc", loc),
            ("scale", scale),
            ("noise_scale", noise_scale),
        ):
            self.register_buffer(
                name, torch.as_tensor(value).float().expand(num_states).clone()
            )
        self._shared = ["transition", "mu"]
        if noise is None:
            self._shared.append("sigma")
        shared = poutine.block(self.model, expose=self._shared)
        make_guide = autoguide or partial(
            AutoMultivariateNormal, init_loc_fn=init_to_mean
        )
        self.autoguide = make_guide(shared)
        with module_parameters(self):
            # creates its parameters, so that a state_dict contains them
            self.autoguide(torch.zeros(1, 1))

    def model(self, x: Tensor) -> Any:
        """p(x | z, A, μ, σ) p(z | A) p(A, μ, σ), or p(x | A, μ, σ) p(A, μ, σ) if `marginal`; x has
        shape (batch, T).
        """
        return self._joint(x, self.marginal)

    def guide(self, x: Tensor) -> Any:
        """q(A, μ, σ)."""
        return self.autoguide(x)

    def _joint(self, x: Tensor, marginal: bool) -> Any:
        transition = pyro.sample(
            "transition", dist.Dirichlet(self.concentration).to_event(1)
        )
        mu = pyro.sample("mu", OrderedNormal(self.loc, self.scale))
        if self.noise is None:
            sigma = pyro.sample("sigma", dist.HalfNormal(self.noise_scale).to_event(1))
        else:
            sigma = torch.full_like(mu, self.noise)
        with pyro.plate("data", len(x)):
            if marginal:
                fn = Sequence(self.start, transition, mu, sigma, length=x.shape[-1])
                return pyro.sample("x", fn, obs=x)
            path: list[Tensor] = []
            probabilities = self.start
            for t in pyro.markov(range(x.shape[-1])):
                if path:
                    probabilities = Vindex(transition)[..., path[-1], :]
                state = dist.Categorical(probabilities)
                z = pyro.sample(f"z_{t}", state, infer={"enumerate": "parallel"})
                path.append(z)
                emission = dist.Normal(Vindex(mu)[..., z], Vindex(sigma)[..., z])
                pyro.sample(f"x_{t}", emission, obs=x[:, t])
        return path

    def sequence(
        self, length: int, given: Mapping[str, Tensor] | None = None
    ) -> Sequence:
        """p(x | A, μ, σ) as a distribution of sequences of `length` steps, the states summed out.

        Arguments:
            length: T.
            given: values of "transition" (*draws, K, K), "mu" and, if it is a latent, "sigma"
                (*draws, K), as from ``vilvm.posterior``; by default the guide's median.

        Returns:
            A distribution of batch shape (*draws, 1), which broadcasts with the data.
        """
        if given is None:
            given = self.median()
        mu = given["mu"].unsqueeze(-2)
        if self.noise is None:
            sigma = given["sigma"].unsqueeze(-2)
        else:
            sigma = torch.full_like(mu, self.noise)
        transition = given["transition"].unsqueeze(-3)
        return Sequence(self.start, transition, mu, sigma, length=length)

    def log_likelihood(
        self, x: Tensor, given: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """log p(x | A, μ, σ) by the forward algorithm, in nats per sequence.

        Arguments:
            x: shape (num_data, T).
            given: as for ``sequence``.

        Returns:
            Shape (*draws, num_data).
        """
        return self.sequence(x.shape[-1], given).log_prob(x)

    def smoothing(self, x: Tensor, given: Mapping[str, Tensor] | None = None) -> Tensor:
        """p(z_t = k | x, A, μ, σ), exact.

        Arguments:
            x: shape (num_data, T).
            given: as for ``sequence``.

        Returns:
            Shape (*draws, num_data, T, K). Their mean over posterior draws is p(z_t = k | x).
        """
        fn = self.sequence(x.shape[-1], given)
        return smooth(fn.start.log(), fn.transition.log(), fn.log_emission(x))

    @torch.no_grad()
    def states(
        self, x: Tensor, given: Mapping[str, Tensor] | None = None, temperature: int = 0
    ) -> Tensor:
        """A path of states given x and one value of the parameters, by Pyro's ``infer_discrete``.

        Arguments:
            x: shape (num_data, T).
            given: values of "transition", shape (K, K), "mu" and, if it is a latent, "sigma",
                shape (K,); by default the guide's median.
            temperature: 0 for the most probable path (Viterbi), 1 for a draw from p(z | x, A, μ,
                σ).

        Returns:
            Shape (num_data, T), whole numbers from 0.
        """
        if given is None:
            given = self.median()
        fixed = poutine.condition(self._joint, data=dict(given))
        inferred: Any = infer_discrete(
            fixed, first_available_dim=-2, temperature=temperature
        )
        return torch.stack([z.expand(len(x)) for z in inferred(x, False)], -1)

    @torch.no_grad()
    def median(self) -> dict[str, Tensor]:
        """The guide's median of A, μ and σ, transformed from its unconstrained space."""
        with module_parameters(self):
            medians: Any = self.autoguide.median()
        return {name: value.detach() for name, value in medians.items()}


def _check_positive(
    concentration: float, scale: Any, noise_scale: float, noise: float | None
) -> None:
    numbers = [concentration, noise_scale]
    if noise is not None:
        numbers.append(noise)
    if min(numbers) <= 0 or bool((torch.as_tensor(scale) <= 0).any()):
        raise ValueError(
            "HiddenMarkov: concentration, scale, noise and noise_scale must be positive."
        )


def _start(start: Any, num_states: int) -> Tensor:
    """ρ, checked; uniform if None."""
    if start is None:
        return torch.full((num_states,), 1 / num_states)
    rho = torch.as_tensor(start).float()
    if (
        rho.shape != (num_states,)
        or bool((rho < 0).any())
        or abs(rho.sum().item() - 1) > 1e-5
    ):
        raise ValueError(
            f"HiddenMarkov: start must be {num_states} probabilities that sum to one; got "
            f"{rho.tolist()}."
        )
    return rho


def objective() -> TraceEnum_ELBO:
    """The ELBO with the states summed out.

    Returns:
        An objective for ``vilvm.fit`` or ``pyro.infer.SVI``.

    Examples:
        >>> from vilvm.models.hidden_markov import objective
        >>> type(objective()).__name__
        'TraceEnum_ELBO'
    """
    return TraceEnum_ELBO(max_plate_nesting=1)


def tiny() -> tuple[HiddenMarkov, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.hidden_markov import tiny
        >>> lvm, batch = tiny()
    """
    return HiddenMarkov(num_states=2), torch.randn(5, 3)
