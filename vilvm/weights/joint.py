"""The joint density as a function of unconstrained latents: what a Markov chain moves over.

A chain needs p(x, z) at values that nobody has drawn, with a gradient, over all of ℝᴰ. Each site that is drawn is put at T(u), T the
bijection from ℝᵈ to its support, and the density of u is that of T(u) times |det ∂T/∂u|. Two densities are told of every u:

    base:    p₀(u), normalised, from which u can be drawn: the prior, or the guide;
    target:  p(x, z(u)) |∂z/∂u|, whose integral over u is p(x).

With the guide as base, u stands for what the guide draws, which for an automatic guide is one vector that all latents are made of.
Latents that are enumerated are summed over, as they are in ``log_weights``.
"""

from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import ComposeTransform, Transform, TransformedDistribution, biject_to, constraints

from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, module_parameters
from vilvm.weights.contract import check_batch
from vilvm.weights.densities import reduced, total
from vilvm.weights.enumeration import run_model
from vilvm.weights.structure import guide_sites, layout
from vilvm.weights.traces import Sites, family, log_prob, run, sites_of, strip, unstrip

__all__ = ["Joint", "LogDensities"]


class LogDensities(NamedTuple):
    """Log-densities of u, shape (num_samples, num_data), or (num_samples, 1) if the data share a latent, in nats.

    Arguments:
        base: of the normalised density from which chains start.
        target: of p(x, z), not normalised over z.
    """

    base: Tensor
    target: Tensor


class Joint:
    """p(x, z) of one batch, and a base density to start from, over unconstrained latents.

    Every u is a tensor of shape (num_samples, num_data, D): all that is drawn for a datum in one row. Where the data share a latent,
    they are one datum together, of shape (num_samples, 1, D).

    Arguments:
        lvm: the model and guide, all latents continuous but those that are enumerated.
        batch: what both are called with.
        base: "guide" or "prior".

    Raises:
        ContractError: the pair breaks the contract on this batch; a latent is discrete, degenerate or of a flat prior; or there is none; or a
            plate subsamples its data.
    """

    def __init__(self, lvm: LatentVariableModel, batch: Any, base: Literal["guide", "prior"] = "guide"):
        check_batch(batch)
        self.lvm, self.batch, self.base = lvm, batch, base
        self.plan = layout(lvm, batch)
        self._check()
        self.num_data = self.plan.num_data if self.plan.local else 1
        self.shapes: dict[str, torch.Size] = {}  # of each site's own plates and event, of u
        self.draw(1)

    def _check(self) -> None:
        name, plan = type(self.lvm).__name__, self.plan
        if plan.degenerate or plan.improper:
            which, why = (plan.degenerate, "degenerate guide") if plan.degenerate else (plan.improper, "flat prior")
            raise ContractError(
                f"{name}: latent {which[0]!r} has a {why}, so there is no evidence to estimate: give it a guide and a prior with a density."
            )
        if plan.subsample:
            raise ContractError(
                f"{name} subsamples its plate {next(iter(plan.subsample))!r} at random; take a model that sees all of it."
            )
        if not plan.latents:
            raise ContractError(f"{name} has no latent that is not enumerated, so there is nothing for a chain to move.")

    @torch.no_grad()
    def draw(self, num_samples: int) -> Tensor:
        """Draws of u from the base density, shape (num_samples, num_data, D)."""
        with _Note(self._moves) as note:
            self._run_base(num_samples)
        if note.discrete:
            raise ContractError(
                f"{type(self.lvm).__name__}: latent {note.discrete!r} is discrete, and chains move continuous ones only: enumerate it, or take the "
                "importance-weighted bound."
            )
        self.shapes = {name: u.shape[1:] for name, u in note.unconstrained.items()}
        return torch.cat([self._flat(u, num_samples) for u in note.unconstrained.values()], -1)

    def __call__(self, u: Tensor) -> LogDensities:
        """The log-densities of u, of shape (num_samples, num_data, D), differentiable."""
        num_samples = len(u)
        with module_parameters(self.lvm), evaluation_mode(self.lvm), pyro.validation_enabled(False):
            return self._densities(self._sites_of(u), num_samples)

    @torch.no_grad()
    def latents(self, u: Tensor) -> dict[str, Tensor]:
        """The latents that u stands for, as ``posterior`` returns them."""
        values, samples = self._sites_of(u), (len(u), self.plan.sample_dim)
        with module_parameters(self.lvm), evaluation_mode(self.lvm), _Put(values):
            if self.base == "guide":
                sites = guide_sites(run(self.lvm.guide, "guide", self.batch, samples=samples))
            else:
                sites = sites_of(run(self.lvm.model, "model", self.batch, samples=samples))
        return {n: strip(sites[n]["value"], sites[n], len(u), self.plan.nesting) for n in self.plan.latents}

    @torch.no_grad()
    def unconstrained(self, latents: dict[str, Tensor]) -> Tensor:
        """The u that stands for these latents, given as ``posterior`` returns them; shape (num_samples, num_data, D).

        Raises:
            ContractError: the guide is the base and draws something else than the latents.
        """
        if set(self.shapes) != set(self.plan.latents):
            raise ContractError(
                f"The guide of {type(self.lvm).__name__} draws {sorted(self.shapes)} and makes the latents of them, which cannot be undone: start "
                "from the prior, base='prior'."
            )
        num_samples = len(next(iter(latents.values())))
        with _Note(self._moves, latents, self.plan.nesting) as note:
            self._run_base(num_samples)
        return torch.cat([self._flat(u, num_samples) for u in note.unconstrained.values()], -1)

    def _run_base(self, num_samples: int) -> poutine.Trace:
        samples = (num_samples, self.plan.sample_dim)
        half = self.lvm.guide if self.base == "guide" else self.lvm.model
        with module_parameters(self.lvm), evaluation_mode(self.lvm), pyro.validation_enabled(False):
            return run(half, "guide" if self.base == "guide" else "model", self.batch, samples=samples)

    def _moves(self, msg: Any) -> bool:
        """Whether a site is one of those that u stands for."""
        if self.base == "prior":
            return msg["name"] in self.plan.latents
        return not msg["is_observed"] and family(msg["fn"]) != "Delta"

    # Between u in one tensor and u by site ---------------------------------------------------------------------------------

    @property
    def _axis(self) -> int | None:
        """Which dimension of a site's u is that of the data, after that of samples; None if all data are one."""
        return self.plan.nesting + 1 + self.plan.data_dim if self.plan.local and self.plan.data_dim is not None else None

    def _flat(self, u: Tensor, num_samples: int) -> Tensor:
        u = u.expand(num_samples, *u.shape[1:])
        return (
            u.reshape(num_samples, 1, -1)
            if self._axis is None
            else u.movedim(self._axis, 1).reshape(num_samples, self.num_data, -1)
        )

    def _sites_of(self, u: Tensor) -> dict[str, Tensor]:
        values, start = {}, 0
        for name, shape in self.shapes.items():
            size = shape.numel() // self.num_data
            part = u[..., start : start + size]
            if self._axis is None:
                values[name] = part.reshape(len(u), *shape)
            else:
                rest = [s for i, s in enumerate(shape, start=1) if i != self._axis]
                values[name] = part.reshape(len(u), self.num_data, *rest).movedim(1, self._axis)
            start += size
        return values

    # Densities -------------------------------------------------------------------------------------------------------------

    def _densities(self, values: dict[str, Tensor], num_samples: int) -> LogDensities:
        plan, samples = self.plan, (num_samples, self.plan.sample_dim)

        def reduce(in_data: bool, value: Tensor) -> Tensor:
            return reduced(in_data, value, num_samples, plan)

        with _Put(values) as put:
            guide: Sites = {}
            guide_trace = None
            if self.base == "guide":
                guide_trace = run(self.lvm.guide, "guide", self.batch, samples=samples)
                guide = guide_sites(guide_trace)
            model = run_model(self.lvm.model, self.batch, (guide_trace,), num_samples, plan, reduce)
        sites = guide or {n: model.sites[n] for n in values}
        jacobian = [reduce(plan.is_in_data(sites[n]), put.log_jacobians[n]) for n in values]
        joint = [*model.log_likelihoods.values(), *model.log_priors.values()]
        if self.base == "prior":
            base = list(model.log_priors.values())
        else:
            terms = {n: reduce(plan.is_in_data(s), log_prob("guide", s)) for n, s in guide.items()}
            base = [terms[n] for n in values]
            joint += [-term for n, term in terms.items() if n not in values]  # of a change of variables that the guide makes
        return LogDensities(self._by_datum(base + jacobian), self._by_datum(joint + jacobian))

    def _by_datum(self, terms: list[Tensor]) -> Tensor:
        """The sum, float64, shape (num_samples, num_data), or (num_samples, 1) if all data are one."""
        summed = total(terms)
        return summed if self.plan.local else summed.reshape(len(summed), -1).sum(1, keepdim=True)


class _Put(Messenger):
    """Puts each of these sites at T(u), and keeps log |det ∂T/∂u|."""

    def __init__(self, values: dict[str, Tensor]):
        super().__init__()
        self.values, self.log_jacobians = values, {}

    def _pyro_sample(self, msg: Any) -> None:
        u = self.values.get(msg["name"])
        if u is None or msg["done"]:
            return
        transform = _bijection(msg)
        msg["value"], msg["done"] = transform(u), True
        # One number a batch element, also where the transform is of single numbers and the event is not.
        log_det = transform.log_abs_det_jacobian(u, msg["value"])
        extra = log_det.dim() - (msg["value"].dim() - msg["fn"].event_dim)
        self.log_jacobians[msg["name"]] = log_det.sum(list(range(-extra, 0))) if extra else log_det


class _Note(Messenger):
    """Notes the u of what is drawn at the sites that `moves` picks; or of the given values, which it puts there."""

    def __init__(self, moves: Any, values: dict[str, Tensor] | None = None, nesting: int = 0):
        super().__init__()
        self.moves, self.values, self.nesting = moves, values, nesting
        self.unconstrained: dict[str, Tensor] = {}
        self.discrete = ""

    def _pyro_sample(self, msg: Any) -> None:
        if self.values is not None and self._is_meant(msg) and not msg["done"]:
            msg["value"], msg["done"] = self._placed(msg), True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not self._is_meant(msg):
            return
        if msg["fn"].support.is_discrete:
            self.discrete = msg["name"]
            return
        inverse: Any = _bijection(msg).inv
        self.unconstrained[msg["name"]] = inverse(msg["value"])

    def _placed(self, msg: Any) -> Tensor:
        value = (self.values or {})[msg["name"]]
        sizes = {f.dim: f.size for f in msg["cond_indep_stack"] if f.vectorized and f.name != "_monte_carlo"}
        own = (*(sizes[dim] for dim in sorted(sizes)), *msg["fn"].event_shape)
        if tuple(value.shape[1:]) != own:
            raise ContractError(
                f"Latent {msg['name']!r} was given draws of shape {tuple(value.shape[1:])}; a draw of it has shape {own}."
            )
        return unstrip(value, msg, self.nesting)

    def _is_meant(self, msg: Any) -> bool:
        return not msg["infer"].get("_deterministic") and "_Subsample" not in type(msg["fn"]).__name__ and self.moves(msg)


def _bijection(site: Any) -> Transform:
    """T, from ℝᵈ to the support of a site, which may depend on other latents."""
    fn = site["fn"]
    try:
        return _transformed(fn) or biject_to(fn.support)
    except NotImplementedError:
        raise ContractError(
            f"Latent {site['name']!r} is {family(fn)}, whose support ({fn.support}) no bijection from ℝᵈ is known to, so no chain can move it: write it as "
            "a function of latents over ℝᵈ, or take the importance-weighted bound."
        ) from None


def _transformed(fn: Any) -> Transform | None:
    """T of a transformed distribution that torch says a wrong support of; else None.

    It says the last transform's codomain, as if that transform were applied to all of ℝᵈ: a shifted exponential would be over the whole line.
    """
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist  # under to_event, mask and expand
    if not isinstance(fn, TransformedDistribution) or type(fn).support is not TransformedDistribution.support or not fn.transforms:
        return None
    before = [fn.base_dist.support, *(t.codomain for t in fn.transforms[:-1])]
    if all(_is_real(c) for c in before):
        return None
    return ComposeTransform([_transformed(fn.base_dist) or biject_to(fn.base_dist.support), *fn.transforms])


def _is_real(constraint: Any) -> bool:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.real
