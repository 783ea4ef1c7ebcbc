"""Can these draws be trusted? Draws of a posterior that another program made, judged.

What can be tested depends on what is known:

- always, if latents are continuous: Stein's identity, which compares draws and the gradient of
  log p (``stein``);
- with a model: the posterior predictive check;
- with log q, the log-density of the approximation that drew them: Pareto k̂ of the weights, the
  rate, means and standard deviations beside reweighted ones, and the evidence, with the criteria
  of ``diagnose``;
- with chains: R̂ and effective sample sizes (``chains``).

With neither log q nor chains, a posterior is not fully examined, and never trusted. Nothing here
finds a mode that no draw visits.

References: Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and
Gelman, 2018; Measuring Sample Quality with Stein's Method, Jackson Gorham and Lester Mackey, 2015;
Rank-Normalization, Folding, and Localization: An Improved R̂ for Assessing Convergence of MCMC,
Vehtari, Gelman, Simpson, Carpenter and Bürkner, 2021.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import (
    check_positive,
    check_probability,
    check_seed,
)
from vilvm._runtime.random import seeded
from vilvm.diagnostics._coordinates import NAMELESS, Coordinates, SiteDims
from vilvm.diagnostics._given_density import AtDraws, FunctionDensity, ModelDensity
from vilvm.diagnostics._given_draws import GivenDraws, in_chunks, read_draws
from vilvm.diagnostics._given_weights import correction_of, pareto_k_of, rates_of
from vilvm.diagnostics._posterior_tables import table_of_draws
from vilvm.diagnostics._session import Check, Session
from vilvm.diagnostics.chains import chains as chains_of
from vilvm.diagnostics.diagnose import Diagnosis, import_all
from vilvm.diagnostics.predictive_check import predictive_check
from vilvm.diagnostics.stein import stein
from vilvm.diagnostics.weighted_evidence import weighted_evidence
from vilvm.lvm import ContractError

__all__ = ["diagnose_draws"]

_K, _MOMENTS, _CHAINS = (
    "Pareto k̂",
    "Means and standard deviations",
    "R̂ and effective sample size",
)
_NO_LOG_Q = "log_q, the log-density of the draws, was not given."
_NO_CHAINS = "the draws are not of chains (chains=True)."
_NEITHER = (
    "neither log_q nor chains were given, so nothing shows a part of the posterior that the draws "
    "underrate."
)
_PILOT = 200  # draws of a timed run
_SHARE = 0.5  # of the budget, for the density


def diagnose_draws(
    model: Any = None,
    data: Any = None,
    draws: Any = None,
    log_q: Any = None,
    *,
    log_joint: Callable[[dict[str, Tensor]], Any] | None = None,
    supports: Mapping[str, Any] | None = None,
    chains: bool = False,
    budget: float = 60.0,
    false_alarm: float = 0.01,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Diagnosis:
    """Judges draws of a posterior that another program made, and sorts the findings by severity.

    The density is that of a Pyro model of the data, or a function ``log_joint`` of the latents.
    Both are computed in float64. All latents are judged jointly, also those of single data.

    Arguments:
        model: a Pyro model, a function of the data, or a pair, whose guide is ignored.
        data: what the model is called with, as for ``fit``; not used with `log_joint`.
        draws: arrays by latent (NumPy, torch or JAX), shape (S, *event) each, or (chains, S,
            *event) with `chains`; one array if the model has one latent; or an ArviZ DataTree,
            InferenceData or posterior Dataset, whose chains are used and whose other variables
            are ignored. Latents have the model's names, and the values that it gives them:
            constrained, not transformed to ℝ. Enumerated latents are left out.
        log_q: normalised log-density of each draw under the approximation that drew it, as a
            density of the constrained latents jointly; shape (S,), or (chains, S).
        log_joint: in place of a model, a function of draws by latent, shape (S, *event) each,
            which returns log p(x, z), shape (S,), up to a constant; written in torch, so that it
            has a gradient, or Stein's identity is skipped.
        supports: with `log_joint`, the torch constraint of every latent that is not real.
        chains: whether arrays have a dimension of chains before that of draws.
        budget: seconds; if short, a thinned subset of the draws is used, see ``cut``.
        false_alarm: probability of a warning by any test for draws of the posterior itself with
            log q its log-density; each test has an equal share. R̂ has no such rate.
        coords: by dimension, the name of each index, as for ``export.draws_to_datatree``.
        dims: by site, names for its dimensions except those of draws and data.
        seed: seed of replicated data and of the data's transform.
        progress: whether to show a progress bar.

    Returns:
        Diagnosis, with log-densities in nats, of all data jointly. Its ``trusted`` is false if
        neither `log_q` nor chains were given, or if draws are too few to decide.

    Raises:
        ValueError: draws lack a latent, have an unknown one, or one of another shape; they are not
            finite, outside a support or fewer than 100; or log_q, log_joint, coords or dims do not
            fit them.
        ContractError: the model breaks the contract, or has a discrete latent that it does not
            enumerate.

    Reference: Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and
    Gelman, 2018.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> posterior = dist.Normal(0.0, 0.5)  # of three zeros
        >>> mu = posterior.sample((1000,))
        >>> log_q = posterior.log_prob(mu)
        >>> vilvm.diagnose_draws(model, torch.zeros(3), {"mu": mu}, log_q).trusted
        True
    """
    seed = check_seed("diagnose_draws: seed", seed)
    budget = check_positive("diagnose_draws: budget", budget, "number of seconds")
    false_alarm = check_probability("diagnose_draws: false_alarm", false_alarm)
    if draws is None:
        raise ValueError(
            "diagnose_draws: no draws were given; call diagnose_draws(model, data, draws), or "
            "diagnose_draws(log_joint=function, draws=draws)."
        )
    began = time.monotonic()
    import_all()
    with seeded(seed):
        density = _density(model, data, log_joint, supports, seed)
        names = _names(density, coords, dims)
        given = read_draws(draws, log_q, bool(chains), density.shapes, density.extra)
        given, at, cut = _evaluated(density, given, began + _SHARE * budget)
    with seeded(seed, density.device):
        session = Session(None, budget, began + budget, names)
        drawn = _Drawn(density, given, at, seed, names)
        session.run(list(_checks(drawn)), false_alarm, progress)
    table = session.tabulate(
        lambda _: table_of_draws(
            given.latents, density.data_axes, session.results, names
        )
    )
    undecided = _undecided(session, given)
    findings = [result.finding for result in session.results.values()]
    return Diagnosis(
        findings=tuple(sorted(findings, key=lambda finding: -finding.severity)),
        results=session.results,
        skipped=session.skipped | undecided,
        index=torch.arange(getattr(density, "num_data", 0)),
        seconds=time.monotonic() - began,
        unfinished=(*session.unfinished, *undecided),
        cut=cut | session.cut,
        tempered=density.tempered,
        posterior=table,
    )


class _Drawn(NamedTuple):
    """Draws, and their density at each.

    Arguments:
        density: of a model or a function.
        given: the draws.
        at: the density at the draws.
        seed: of replicated data.
        names: of data and components.
    """

    density: ModelDensity | FunctionDensity
    given: GivenDraws
    at: AtDraws
    seed: int
    names: Coordinates = NAMELESS


def _names(
    density: ModelDensity | FunctionDensity, coords: Any, dims: Any
) -> Coordinates:
    """The user's names; those of a log joint density must be in `dims` if its latents have any."""
    sites = {
        name: SiteDims(shape, density.data_axes.get(name, 0) - 1)
        if name in density.data_axes
        else SiteDims(shape)
        for name, shape in density.shapes.items()
    }
    data = (density.data_plate, getattr(density, "num_data", 0))
    return Coordinates.of("diagnose_draws", coords, dims, sites, data)


def _density(
    model: Any, data: Any, log_joint: Any, supports: Any, seed: int
) -> ModelDensity | FunctionDensity:
    if (model is None) == (log_joint is None):
        raise ValueError(
            "diagnose_draws: pass either a model and its data, or log_joint=, a function of the "
            "latents."
        )
    if model is None:
        if data is not None:
            raise ValueError(
                "diagnose_draws: with log_joint= there are no data to pass; it holds them."
            )
        return FunctionDensity(log_joint, supports)
    if supports is not None:
        raise ValueError(
            "diagnose_draws: supports= belongs to log_joint=; a model states its own."
        )
    if isinstance(model, Tensor | Mapping | tuple):
        raise ContractError(
            f"diagnose_draws: the first argument is a {type(model).__name__}, and not the model; "
            "the order is diagnose_draws(model, data, draws)."
        )
    return ModelDensity(model, data, seed)


def _evaluated(
    density: ModelDensity | FunctionDensity, given: GivenDraws, end: float
) -> tuple[GivenDraws, AtDraws, dict[str, str]]:
    """The density at all draws, or at as many as there is time for until `end`."""
    cut, num_draws = {}, given.num_draws
    if num_draws > 2 * _PILOT:
        pilot = given.thinned(_PILOT)
        _at(density, pilot)  # the first run takes longer
        start = time.monotonic()
        _at(density, pilot)
        each = (time.monotonic() - start) / pilot.num_draws
        fits = int(max(end - time.monotonic(), 0) / max(each, 1e-9))
        given = given.thinned(max(fits, 2 * _PILOT))
    if given.num_draws < num_draws:
        cut["Draws"] = f"{given.num_draws} of {num_draws} draws, evenly spaced"
    at = _at(density, given)
    if bool((at.log_joint.isnan() | at.log_joint.isposinf()).any()):
        raise ValueError(
            "diagnose_draws: the log joint density is NaN or +inf at "
            f"{int((~(at.log_joint < torch.inf)).sum())} of {given.num_draws} draws; look for an "
            "overflow in the model, or a draw that it cannot have."
        )
    return given, at, cut


def _at(density: ModelDensity | FunctionDensity, given: GivenDraws) -> AtDraws:
    """The density at all draws, a chunk at a time."""
    chunks = in_chunks(given.latents, density.chunk)
    return AtDraws.joined([density.at(chunk) for chunk in chunks])


def _undecided(session: Session, given: GivenDraws) -> dict[str, str]:
    """Why the posterior is not fully examined, by diagnostic, besides what failed."""
    if given.log_q is None and not given.num_chains:
        return {_K: _NEITHER}
    found = session.results.get(_MOMENTS)
    if found is not None and bool(found.undecided.any()):
        return {
            _MOMENTS: f"{given.num_draws} draws are too few to decide whether "
            f"{int(found.undecided.sum())} of {len(found.names)} components are within the "
            "tolerances."
        }
    return {}


# The checks that apply
# --------------------------------------------------------------------------------------------


def _checks(drawn: _Drawn) -> Iterator[Check]:
    """All diagnostics, in their order."""
    yield from _weight_checks(drawn)
    given, at = drawn.given, drawn.at
    yield Check(
        _CHAINS,
        lambda *_: chains_of(*_by_chain(given)),
        why_not="" if given.num_chains else _NO_CHAINS,
        tested=False,
    )
    yield Check(
        "Stein's identity",
        lambda rate, _: stein(
            at.u,
            _known(at.score).where(at.log_joint.isfinite()[:, None], torch.nan),
            names=drawn.density.coordinates(given.latents),
            num_chains=max(given.num_chains, 1),
            false_alarm=rate,
        ),
        why_not=_why_no_score(drawn),
    )
    yield _predictive(drawn)


def _weight_checks(drawn: _Drawn) -> Iterator[Check]:
    """The diagnostics of importance weights."""
    given, at, flat = drawn.given, drawn.at, drawn.density.flat
    log_q, why_not = given.log_q, "" if given.log_q is not None else _NO_LOG_Q
    log_w = at.log_joint - (0 if log_q is None else log_q)
    why_flat = why_not
    if flat and not why_not:
        why_flat = (
            f"the prior of latent {flat!r} is flat, so the evidence is not defined."
        )
    why_no_rate = why_flat
    if at.log_prior is None and not why_flat:
        why_no_rate = "log_joint does not separate the prior."
    yield Check(_K, lambda rate, _: pareto_k_of(log_w, rate), why_not)
    yield Check(
        "Rate",
        lambda rate, _: rates_of(_known(log_q), _known(at.log_prior), rate),
        why_no_rate,
    )
    yield Check(
        _MOMENTS,
        lambda rate, _: correction_of(log_w, *given.components(), rate),
        why_not,
    )
    yield Check("Evidence", lambda *_: weighted_evidence(log_w), why_flat, tested=False)


def _predictive(drawn: _Drawn) -> Check:
    density, latents, why_not = drawn.density, drawn.given.latents, ""
    if isinstance(density, FunctionDensity):
        why_not = "log_joint cannot be simulated; pass a model."

    def run(rate: float, seconds: float) -> Any:
        assert isinstance(density, ModelDensity)
        return predictive_check(
            density.lvm,
            density.data,
            num_draws=max(200, round(2 / rate)),
            seed=drawn.seed,
            false_alarm=rate,
            budget=seconds,
            draws=latents,
            columns=drawn.names.of_columns(density.joint.layout.observed),
        )

    return Check("Posterior predictive check", run, why_not, about="model")


def _by_chain(given: GivenDraws) -> tuple[Tensor, tuple[str, ...]]:
    """Draws of the components, shape (chains, draws, K), and their names."""
    names, z = given.components()
    return z.reshape(given.num_chains, -1, len(names)), names


def _why_no_score(drawn: _Drawn) -> str:
    if drawn.given.discrete:
        return f"the draws of {drawn.given.discrete!r} are integers, which have no gradient."
    if drawn.at.score is None:
        return "log_joint has no gradient by torch."
    return ""


def _known(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
