"""The joint density as a function of unconstrained latents, over which a Markov chain moves.

A chain needs p(x, z) at any value of z, with a gradient, over all of ℝᴰ. Each drawn site is set to
T(u), T being the bijection from ℝᵈ to its support, and the density of u is that of T(u) times
|det ∂T/∂u|. There are two densities of every u:

    base:    p₀(u), normalised, from which u can be drawn: the prior, or the guide;
    target:  p(x, z(u)) |∂z/∂u|, whose integral over u is p(x).

With the guide as base, u parametrises the draws of the guide; an automatic guide draws one vector,
from which all latents are computed. Enumerated latents are summed over, as in ``log_weights``.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import pyro
import torch
from torch import Tensor

from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._bijections import bijection_to
from vilvm.weights._conditioning import AtValues, at_samples, drawn_values
from vilvm.weights._enumeration import run_model
from vilvm.weights._passes import Pass, Values
from vilvm.weights._reduction import log_densities, reduce, total
from vilvm.weights._sites import Sites, is_random, own_densities, own_values, sites_of
from vilvm.weights._supports import guide_sites, scored_guide
from vilvm.weights._traces import run
from vilvm.weights._vectorisation import run_at_samples
from vilvm.weights.checks import as_batch
from vilvm.weights.layout import find_layout

__all__ = ["LogDensities", "LogJoint"]


class LogDensities(NamedTuple):
    """Log-densities of u in nats, shape (num_samples, num_data).

    Shape (num_samples, 1) if the data share a latent.

    Arguments:
        base: of the normalised density from which chains start.
        target: of p(x, z), not normalised over z.
    """

    base: Tensor
    target: Tensor


class LogJoint:
    """p(x, z) of one batch, and a base density to start from, over unconstrained latents.

    Every u is a tensor of shape (num_samples, num_data, D), with all draws of a datum in one row.
    If the data share a latent, they form one datum together, of shape (num_samples, 1, D).

    Arguments:
        lvm: the model and guide; all latents are continuous or enumerated.
        batch: what both are called with.
        base: "guide" or "prior".
        improper: whether priors may be flat, which have a posterior but no evidence.

    Raises:
        ContractError: the pair breaks the contract on this batch; a latent is discrete, degenerate
            or has a flat prior; there is no latent; or a plate subsamples its data.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.log_joint import LogJoint
        >>> joint = LogJoint(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6))
        >>> u = joint.draw(3)
        >>> u.shape, joint(u).target.shape
        (torch.Size([3, 4, 2]), torch.Size([3, 4]))
    """

    def __init__(
        self,
        lvm: LatentVariableModel,
        batch: Any,
        base: Literal["guide", "prior"] = "guide",
        improper: bool = False,
    ):
        batch = as_batch(lvm, batch)
        self.lvm, self.batch, self.base = lvm, batch, base
        self.layout = find_layout(lvm, batch, any_data=base == "prior")
        self._check(improper)
        self.num_data = 1
        if self.layout.local:
            self.num_data = self.layout.num_data
        self.guide = scored_guide(lvm, self.layout.masked)
        self.shapes: dict[str, _Shape] = {}
        # whether the densities are being traced, so that nothing is compared
        self.traced = False
        # of the log-likelihoods: N / B if a batch of B data stands for N
        self.likelihood_factor = 1.0
        self.draw(1)

    def _check(self, improper: bool) -> None:
        name, layout = type(self.lvm).__name__, self.layout
        unusable = [(latent, "degenerate guide") for latent in layout.degenerate]
        if not improper:
            unusable += [(latent, "flat prior") for latent in layout.improper]
        for latent, why in unusable:
            raise ContractError(
                f"{name}: latent {latent!r} has a {why}, so there is no evidence to estimate: "
                "give it a guide and a prior with a density."
            )
        for plate in layout.subsample:
            raise ContractError(
                f"{name} subsamples its plate {plate!r} at random; use a model that does not."
            )
        if not layout.latents:
            raise ContractError(
                f"{name} has no latent that is not enumerated, so there is nothing for a chain to "
                "move."
            )

    @torch.no_grad()
    def draw(self, num_samples: int) -> Tensor:
        """Draws of u from the base density, shape (num_samples, num_data, D)."""
        pass_ = Pass(self._base, f"draws of u from the {self.base}")
        return self._flat(self._samples(num_samples, pass_)["u"])

    def __call__(self, u: Tensor) -> LogDensities:
        """The log-densities of u, of shape (num_samples, num_data, D), differentiable."""
        pass_ = Pass(self._densities, f"densities, base={self.base}")
        values = self._samples(
            len(u), pass_, self.by_site(u), check=False, traced=self.traced
        )
        return LogDensities(values["densities"]["base"], values["densities"]["target"])

    @torch.no_grad()
    def log_jacobian(self, u: Tensor) -> Tensor:
        """log |∂z/∂u|, shaped as the log-densities; less it, they are of z in place of u."""
        pass_ = Pass(self._densities, f"densities, base={self.base}")
        values = self._samples(len(u), pass_, self.by_site(u))
        return values["densities"]["jacobian"]

    @torch.no_grad()
    def latents(self, u: Tensor) -> dict[str, Tensor]:
        """The latents at u, as ``posterior`` returns them."""
        pass_ = Pass(self._latents, f"latents of u, base={self.base}")
        return self._samples(len(u), pass_, self.by_site(u))["latents"]

    @torch.no_grad()
    def unconstrained(self, latents: dict[str, Tensor]) -> Tensor:
        """The u of these latents, shape (num_samples, num_data, D).

        Arguments:
            latents: as ``posterior`` returns them.

        Raises:
            ContractError: the guide is the base, and computes its latents from other draws.
        """
        if set(self.shapes) != set(self.layout.latents):
            raise ContractError(
                f"The guide of {type(self.lvm).__name__} draws {sorted(self.shapes)} and computes "
                "the latents from them, which cannot be inverted: start from the prior, "
                "base='prior'."
            )
        given = {name: latents[name] for name in self.layout.latents}
        num_samples = len(next(iter(given.values())))
        pass_ = Pass(self._base, f"u, base={self.base}")
        return self._flat(self._samples(num_samples, pass_, given)["u"])

    def _samples(
        self,
        num_samples: int,
        pass_: Pass,
        given: Mapping[str, Tensor] | None = None,
        check: bool = True,
        traced: bool = False,
    ) -> Values:
        with (
            module_parameters(self.lvm),
            evaluation_mode(self.lvm),
            pyro.validation_enabled(False),
        ):
            return run_at_samples(
                self.lvm,
                self.batch,
                num_samples,
                pass_,
                given,
                vectorisation=self.layout.vectorisation,
                check=check,
                traced=traced,
            )

    # Passes
    # ----------------------------------------------------------------------------------------

    def _base_sites(self, batch: Any, num_samples: int | None) -> Sites:
        """The sites of a run of the guide or, with the prior as base, of the model."""
        samples = self.layout.samples(num_samples)
        if self.base == "guide":
            return guide_sites(run(self.guide, "guide", batch, samples=samples))
        return sites_of(run(self.lvm.model, "model", batch, samples=samples))

    def _base(
        self, batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        """u, by site, of draws from the base, or of given latents."""
        nesting, size = self.layout.nesting, num_samples or 1
        with at_samples(given, num_samples, nesting):
            found = self._base_sites(batch, num_samples)
        sites = {name: site for name, site in found.items() if self._moves(site)}
        if not sites:
            raise ContractError(
                f"The guide of {type(self.lvm).__name__} draws no latent at random, so there is "
                "nothing for a chain to move: its importance-weighted bound is all that it has."
            )
        for name, site in sites.items():
            self._check_continuous(name, site)
        values = {
            n: cast(Tensor, bijection_to(s).inv(s["value"])) for n, s in sites.items()
        }
        if num_samples is None:
            self.shapes = {
                n: _Shape(values[n].shape, len(s["fn"].batch_shape))
                for n, s in sites.items()
            }
        return {
            "u": {
                n: self._like_single(u, self.shapes[n], size) for n, u in values.items()
            },
            "drawn": drawn_values(sites, size, nesting),
            "densities": own_densities(self.base, sites, size, nesting),
        }

    def _check_continuous(self, name: str, site: Any) -> None:
        if site["fn"].support.is_discrete:
            raise ContractError(
                f"{type(self.lvm).__name__}: latent {name!r} is discrete, and chains move "
                "continuous ones only: enumerate it, or take the importance-weighted bound."
            )

    def _moves(self, msg: Any) -> bool:
        """Whether u holds the value of a site."""
        if self.base == "prior":
            return msg["name"] in self.layout.latents
        return is_random(msg)

    def _latents(
        self, batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        with self._at_unconstrained(given, num_samples).handler:
            sites = self._base_sites(batch, num_samples)
        size, nesting = num_samples or 1, self.layout.nesting
        drawn = {name: sites[name] for name in self.layout.latents}
        return {"latents": own_values(drawn, size, nesting)}

    def _densities(
        self, batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        layout = self.layout
        at_u = self._at_unconstrained(given, num_samples)
        guide, guide_trace = {}, None
        with at_u.handler:
            if self.base == "guide":
                guide_trace = run(
                    self.guide, "guide", batch, samples=layout.samples(num_samples)
                )
                guide = guide_sites(guide_trace)
            model = run_model(
                self.lvm.model, batch, (guide_trace,), num_samples, layout
            )
        sites = guide or model.sites
        jacobian = [
            reduce(
                at_u.log_jacobians[n],
                layout.is_in_data(sites[n]),
                num_samples,
                layout,
            )
            for n in given
        ]
        joint = [self.likelihood_factor * t for t in model.log_likelihoods.values()]
        joint += model.log_priors.values()
        if self.base == "prior":
            base = list(model.log_priors.values())
        else:
            terms = log_densities("guide", guide, num_samples, layout)
            base = [terms[name] for name in given]
            # the other terms are of a change of variables in the guide
            joint += [-term for name, term in terms.items() if name not in given]
        return {
            "densities": {
                "base": self._by_datum(base + jacobian),
                "target": self._by_datum(joint + jacobian),
                "jacobian": self._by_datum(jacobian),
            }
        }

    def _by_datum(self, terms: list[Tensor]) -> Tensor:
        """The float64 sum, shape (num_samples, num_data), or (num_samples, 1)."""
        summed = total(terms)
        if self.layout.local:
            return summed
        return summed.reshape(len(summed), -1).sum(1, keepdim=True)

    def _at_unconstrained(
        self, values: Mapping[str, Tensor], num_samples: int | None
    ) -> "_AtUnconstrained":
        return _AtUnconstrained(values, num_samples, self.shapes, self.layout.nesting)

    # Conversions between u in one tensor and u by site
    # ----------------------------------------------------------------------------------------

    def _like_single(self, u: Tensor, shape: "_Shape", num_samples: int) -> Tensor:
        """u of a site in the shape of a single run, after the dimension of samples."""
        rank = self.layout.nesting + 1 + len(shape.single) - shape.batch
        u = u.reshape((1,) * (rank - u.dim()) + u.shape)
        return u.expand(num_samples, *u.shape[1:]).reshape(num_samples, *shape.single)

    def _axis(self, shape: "_Shape") -> int | None:
        """The dimension of a site's u that is over the data; None if all data are one."""
        if not self.layout.local or self.layout.data_dim is None:
            return None
        return 1 + shape.batch + self.layout.data_dim

    def _flat(self, values: Mapping[str, Tensor]) -> Tensor:
        """u of all sites in one tensor."""
        parts = []
        for name, u in values.items():
            axis = self._axis(self.shapes[name])
            if axis is not None:
                u = u.movedim(axis, 1)
            parts.append(u.reshape(len(u), self.num_data, -1))
        return torch.cat(parts, -1)

    def by_site(self, u: Tensor) -> dict[str, Tensor]:
        """u by site, in the shape of a single run after the dimension of samples."""
        values, start = {}, 0
        for name, shape in self.shapes.items():
            size, axis = shape.single.numel() // self.num_data, self._axis(shape)
            part = u[..., start : start + size]
            if axis is None:
                values[name] = part.reshape(len(u), *shape.single)
            else:
                rest = [*shape.single[: axis - 1], *shape.single[axis:]]
                values[name] = part.reshape(len(u), self.num_data, *rest).movedim(
                    1, axis
                )
            start += size
        return values


class _Shape(NamedTuple):
    """The shape of a site's u in a single run.

    Arguments:
        single: the shape.
        batch: how many of its dimensions, from the left, are of the batch shape.
    """

    single: torch.Size
    batch: int


class _AtUnconstrained:
    """Sets sites to T(u), and records log |det ∂T/∂u|.

    Arguments:
        values: u by site, in the shape of a single run after the dimension of samples.
        num_samples: size of the plate over samples; None for a single-sample run.
        shapes: of u by site.
        nesting: dimensions that the plates take.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        num_samples: int | None,
        shapes: Mapping[str, _Shape],
        nesting: int,
    ):
        self.num_samples, self.shapes, self.nesting = num_samples, shapes, nesting
        self.handler = AtValues(values, self._place)
        self.log_jacobians: dict[str, Tensor] = {}

    def _place(self, u: Tensor, msg: Any) -> Tensor:
        if self.num_samples is None:
            u = u[0]
        else:
            missing = self.nesting - self.shapes[msg["name"]].batch
            u = u.reshape(len(u), *(1,) * missing, *u.shape[1:])
        transform = bijection_to(msg)
        value: Any = transform(u)
        log_det = transform.log_abs_det_jacobian(u, value)
        # one number per batch element, also if T acts on each number of an event
        extra = log_det.dim() - (value.dim() - msg["fn"].event_dim)
        if extra:
            log_det = log_det.sum(list(range(-extra, 0)))
        self.log_jacobians[msg["name"]] = log_det
        return value
