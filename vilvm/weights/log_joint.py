"""The joint density as a function of unconstrained latents: what a Markov chain moves over.

A chain needs p(x, z) at values that nobody has drawn, with a gradient, over all of ℝᴰ. Each site
that is drawn is put at T(u), T the bijection from ℝᵈ to its support, and the density of u is that
of T(u) times |det ∂T/∂u|. Two densities are told of every u:

    base:    p₀(u), normalised, from which u can be drawn: the prior, or the guide;
    target:  p(x, z(u)) |∂z/∂u|, whose integral over u is p(x).

With the guide as base, u stands for what the guide draws, which for an automatic guide is one
vector that all latents are made of. Latents that are enumerated are summed over, as they are in
``log_weights``.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
)

from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, module_parameters
from vilvm.weights._enumeration import run_model
from vilvm.weights._supports import guide_sites, scored_guide
from vilvm.weights._traces import Put, Sites, family, log_prob, own_densities, run, sites_of, strip
from vilvm.weights._vectorisation import Pass, Values, at_samples
from vilvm.weights.checks import check_batch
from vilvm.weights.layout import find_layout
from vilvm.weights.log_weights import drawn_values, reducer, total

__all__ = ["LogDensities", "LogJoint"]


class LogDensities(NamedTuple):
    """Log-densities of u, shape (num_samples, num_data), or (num_samples, 1) if the data share a
    latent, in nats.

    Arguments:
        base: of the normalised density from which chains start.
        target: of p(x, z), not normalised over z.
    """

    base: Tensor
    target: Tensor


class LogJoint:
    """p(x, z) of one batch, and a base density to start from, over unconstrained latents.

    Every u is a tensor of shape (num_samples, num_data, D): all that is drawn for a datum in one
    row. Where the data share a latent, they are one datum together, of shape (num_samples, 1, D).

    Arguments:
        lvm: the model and guide, all latents continuous but those that are enumerated.
        batch: what both are called with.
        base: "guide" or "prior".

    Raises:
        ContractError: the pair breaks the contract on this batch; a latent is discrete, degenerate
            or of a flat prior; or there is none; or a plate subsamples its data.
    """

    def __init__(
        self, lvm: LatentVariableModel, batch: Any, base: Literal["guide", "prior"] = "guide"
    ):
        check_batch(batch)
        self.lvm, self.batch, self.base = lvm, batch, base
        self.layout = find_layout(lvm, batch, any_data=base == "prior")
        self._check()
        self.num_data = self.layout.num_data if self.layout.local else 1
        self.guide = scored_guide(lvm, self.layout.masked)
        self.shapes: dict[str, _Shape] = {}
        # whether a tracer looks on at the densities, so that nothing is compared
        self.traced = False
        self.draw(1)

    def _check(self) -> None:
        name, layout = type(self.lvm).__name__, self.layout
        if layout.degenerate or layout.improper:
            which, why = (
                (layout.degenerate, "degenerate guide")
                if layout.degenerate
                else (layout.improper, "flat prior")
            )
            raise ContractError(
                f"{name}: latent {which[0]!r} has a {why}, so there is no evidence to estimate: "
                "give it a guide and a prior with a density."
            )
        if layout.subsample:
            raise ContractError(
                f"{name} subsamples its plate {next(iter(layout.subsample))!r} at random; take a "
                "model that sees all of it."
            )
        if not layout.latents:
            raise ContractError(
                f"{name} has no latent that is not enumerated, so there is nothing for a chain to "
                "move."
            )

    @torch.no_grad()
    def draw(self, num_samples: int) -> Tensor:
        """Draws of u from the base density, shape (num_samples, num_data, D)."""
        return self._flat(
            self._samples(num_samples, Pass(self._base, f"draws of u from the {self.base}"))["u"]
        )

    def __call__(self, u: Tensor) -> LogDensities:
        """The log-densities of u, of shape (num_samples, num_data, D), differentiable."""
        one = Pass(self._densities, f"densities, base={self.base}")
        values = self._samples(len(u), one, self._sites_of(u), check=False, traced=self.traced)
        return LogDensities(values["densities"]["base"], values["densities"]["target"])

    @torch.no_grad()
    def latents(self, u: Tensor) -> dict[str, Tensor]:
        """The latents that u stands for, as ``posterior`` returns them."""
        return self._samples(
            len(u), Pass(self._latents, f"latents of u, base={self.base}"), self._sites_of(u)
        )["latents"]

    @torch.no_grad()
    def unconstrained(self, latents: dict[str, Tensor]) -> Tensor:
        """The u that stands for these latents, given as ``posterior`` returns them; shape
        (num_samples, num_data, D).

        Raises:
            ContractError: the guide is the base and draws something else than the latents.
        """
        if set(self.shapes) != set(self.layout.latents):
            raise ContractError(
                f"The guide of {type(self.lvm).__name__} draws {sorted(self.shapes)} and makes "
                "the latents of them, which cannot be undone: start "
                "from the prior, base='prior'."
            )
        given = {n: latents[n] for n in self.layout.latents}
        return self._flat(
            self._samples(
                len(next(iter(given.values()))), Pass(self._base, f"u, base={self.base}"), given
            )["u"]
        )

    def _samples(
        self,
        num_samples: int,
        one: Pass,
        given: Mapping[str, Tensor] | None = None,
        check: bool = True,
        traced: bool = False,
    ) -> Values:
        with (
            module_parameters(self.lvm),
            evaluation_mode(self.lvm),
            pyro.validation_enabled(False),
        ):
            return at_samples(
                self.lvm,
                self.batch,
                num_samples,
                one,
                given,
                ways=self.layout.ways,
                check=check,
                traced=traced,
            )

    def _base_sites(self, batch: Any, num_samples: int | None) -> Sites:
        """The sites of a run of what u is drawn from."""
        samples = self.layout.samples(num_samples)
        if self.base == "guide":
            return guide_sites(run(self.guide, "guide", batch, samples=samples))
        return sites_of(run(self.lvm.model, "model", batch, samples=samples))

    def _base(self, batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        """u, by site, of draws from the base, or of given latents."""
        with Put(given, num_samples, self.layout.nesting):
            sites = {
                n: s for n, s in self._base_sites(batch, num_samples).items() if self._moves(s)
            }
        discrete = [n for n, s in sites.items() if s["fn"].support.is_discrete]
        if discrete:
            raise ContractError(
                f"{type(self.lvm).__name__}: latent {discrete[0]!r} is discrete, and chains move "
                "continuous ones only: enumerate it, or take the "
                "importance-weighted bound."
            )
        found, size = (
            {n: cast(Tensor, _bijection(s).inv(s["value"])) for n, s in sites.items()},
            num_samples or 1,
        )
        if num_samples is None:
            self.shapes = {
                n: _Shape(found[n].shape, len(s["fn"].batch_shape)) for n, s in sites.items()
            }
        return {
            "u": {n: self._natural(u, self.shapes[n], size) for n, u in found.items()},
            "drawn": drawn_values(sites, size, self.layout),
            "densities": own_densities(self.base, sites, size, self.layout.nesting),
        }

    def _latents(self, batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        with _Put(given, num_samples, self.shapes, self.layout.nesting):
            sites = self._base_sites(batch, num_samples)
        size = num_samples or 1
        return {
            "latents": {
                n: strip(sites[n]["value"], sites[n], size, self.layout.nesting)
                for n in self.layout.latents
            }
        }

    def _moves(self, msg: Any) -> bool:
        """Whether a site is one of those that u stands for."""
        if self.base == "prior":
            return msg["name"] in self.layout.latents
        return not msg["is_observed"] and family(msg["fn"]) not in ("Delta", "Unit")

    # Between u in one tensor and u by site
    # ---------------------------------------------------------------------------------

    def _natural(self, u: Tensor, shape: "_Shape", num_samples: int) -> Tensor:
        """u of a site in the shape of a single run, samples first."""
        rank = self.layout.nesting + 1 + len(shape.single) - shape.batch
        u = u.reshape((1,) * (rank - u.dim()) + u.shape)
        return u.expand(num_samples, *u.shape[1:]).reshape(num_samples, *shape.single)

    def _axis(self, shape: "_Shape") -> int | None:
        """Which dimension of a site's u is that of the data, after that of samples; None if all
        data are one.
        """
        dim = self.layout.data_dim
        return 1 + shape.batch + dim if self.layout.local and dim is not None else None

    def _flat(self, values: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for name, u in values.items():
            axis = self._axis(self.shapes[name])
            rows = u if axis is None else u.movedim(axis, 1)
            parts.append(rows.reshape(len(u), self.num_data, -1))
        return torch.cat(parts, -1)

    def _sites_of(self, u: Tensor) -> dict[str, Tensor]:
        values, start = {}, 0
        for name, shape in self.shapes.items():
            size, axis = shape.single.numel() // self.num_data, self._axis(shape)
            part = u[..., start : start + size]
            if axis is None:
                values[name] = part.reshape(len(u), *shape.single)
            else:
                rest = [s for i, s in enumerate(shape.single, start=1) if i != axis]
                values[name] = part.reshape(len(u), self.num_data, *rest).movedim(1, axis)
            start += size
        return values

    # Densities
    # -------------------------------------------------------------------------------------------------------------

    def _densities(
        self, batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        layout, reduce = self.layout, reducer(num_samples, self.layout)
        with _Put(given, num_samples, self.shapes, layout.nesting) as put:
            guide: Sites = {}
            guide_trace = None
            if self.base == "guide":
                guide_trace = run(self.guide, "guide", batch, samples=layout.samples(num_samples))
                guide = guide_sites(guide_trace)
            model = run_model(self.lvm.model, batch, (guide_trace,), num_samples, layout, reduce)
        sites = guide or {n: model.sites[n] for n in given}
        jacobian = [reduce(layout.is_in_data(sites[n]), put.log_jacobians[n]) for n in given]
        joint = [*model.log_likelihoods.values(), *model.log_priors.values()]
        if self.base == "prior":
            base = list(model.log_priors.values())
        else:
            terms = {
                n: reduce(layout.is_in_data(s), log_prob("guide", s)) for n, s in guide.items()
            }
            base = [terms[n] for n in given]
            # of a change of variables that the guide makes
            joint += [-term for n, term in terms.items() if n not in given]
        return {
            "densities": {
                "base": self._by_datum(base + jacobian),
                "target": self._by_datum(joint + jacobian),
            }
        }

    def _by_datum(self, terms: list[Tensor]) -> Tensor:
        """The sum, float64, shape (num_samples, num_data), or (num_samples, 1) if all data are
        one.
        """
        summed = total(terms)
        return (
            summed if self.layout.local else summed.reshape(len(summed), -1).sum(1, keepdim=True)
        )


class _Shape(NamedTuple):
    """The shape of a site's u in a single run, and how many of its dimensions, from the left, are
    of the batch shape.
    """

    single: torch.Size
    batch: int


class _Put(Messenger):
    """Puts each of these sites at T(u), and keeps log |det ∂T/∂u|; u is of the shape of a single
    run, samples first.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        num_samples: int | None,
        shapes: Mapping[str, _Shape],
        nesting: int,
    ):
        super().__init__()
        self.values = {
            n: u[0]
            if num_samples is None
            else u.reshape(len(u), *(1,) * (nesting - shapes[n].batch), *u.shape[1:])
            for n, u in values.items()
        }
        self.log_jacobians: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        u = self.values.get(msg["name"])
        if u is None or msg["done"]:
            return
        transform = _bijection(msg)
        msg["value"], msg["done"] = transform(u), True
        # One number a batch element, also where the transform is of single numbers and the event
        # is not.
        log_det = transform.log_abs_det_jacobian(u, msg["value"])
        extra = log_det.dim() - (msg["value"].dim() - msg["fn"].event_dim)
        self.log_jacobians[msg["name"]] = log_det.sum(list(range(-extra, 0))) if extra else log_det


def _bijection(site: Any) -> Transform:
    """T, from ℝᵈ to the support of a site, which may depend on other latents."""
    fn = site["fn"]
    try:
        return _transformed(fn) or biject_to(_of_components(fn.support))
    except NotImplementedError:
        raise ContractError(
            f"Latent {site['name']!r} is {family(fn)}, whose support ({fn.support}) no bijection "
            "from ℝᵈ is known to, so no chain can move it: write it as "
            "a function of latents over ℝᵈ, or take the importance-weighted bound."
        ) from None


def _of_components(support: Any) -> Any:
    """The support, of a mixture that of its components, which torch puts under a constraint that
    no bijection is registered for.
    """
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return support.base_constraint
    if isinstance(support, constraints.independent):
        return constraints.independent(
            _of_components(support.base_constraint), support.reinterpreted_batch_ndims
        )
    return support


def _transformed(fn: Any) -> Transform | None:
    """T of a transformed distribution that torch says a wrong support of; else None.

    It says the last transform's codomain, as if that transform were applied to all of ℝᵈ: a
    shifted exponential would be over the whole line.
    """
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist  # under to_event, mask and expand
    if (
        not isinstance(fn, TransformedDistribution)
        or type(fn).support is not TransformedDistribution.support
        or not fn.transforms
    ):
        return None
    before = [fn.base_dist.support, *(t.codomain for t in fn.transforms[:-1])]
    if all(_is_real(c) for c in before):
        return None
    return ComposeTransform(
        [_transformed(fn.base_dist) or biject_to(fn.base_dist.support), *fn.transforms]
    )


def _is_real(constraint: Any) -> bool:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.real
