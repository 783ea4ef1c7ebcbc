"""Log-weights with gradients, as a training objective needs them: k particles on one batch.

``log_weights`` reports about a pair: it compares samples with single runs and keeps one subsample
for all passes. A training step reads no value, so that it can be traced, draws a new subsample at
every step, and takes the factors of plates and ``poutine.scale`` from this very run. It may also
change the gradient, in two ways.

- *Path only.* log q(z | x) passes its gradient to the draws z alone, not directly to the
  parameters of q (``vilvm.weights._path_gradients``).
- *Scaled draws.* The gradient in each draw is multiplied by a factor per particle and datum before
  it passes on to the guide (``Particles.scale_gradients``).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from vilvm.lvm import ContractError
from vilvm.weights._particle_runs import Half, ParticleRun, run_particles
from vilvm.weights._passes import Values, concatenate
from vilvm.weights._path_gradients import path_densities
from vilvm.weights._reduction import log_densities, reduce
from vilvm.weights._sites import latents_of, observed_of, own_values
from vilvm.weights.log_weights import LogWeights

__all__ = ["Particles", "particles"]


@dataclass(frozen=True)
class Particles:
    """The log-weights of k particles, with gradients.

    Arguments:
        weights: LogWeights of shape (k, num_data), or (k,) if the data share a latent.
        runs: one run of all particles under a plate, or k runs of one particle.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.particles import particles
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> found = particles((lvm.model, lvm.guide), x, 5, nesting=1)
        >>> found.weights.log_weight.shape, found.scale
        (torch.Size([5, 4]), 1.0)
    """

    weights: LogWeights
    runs: tuple[ParticleRun, ...]

    @property
    def scale(self) -> float | Tensor:
        """The factor that plates and ``poutine.scale`` put on all sites alike.

        A number, or a tensor of one number per datum.

        Raises:
            ContractError: sites have different factors, so that w is no ratio of densities.
        """
        weights = self.weights
        factors = [*weights.guide_scales.items(), *weights.model_scales.items()]
        (first, scale), *others = factors
        for name, other in others:
            if not _equal(scale, other):
                raise self._differing(first, name)
        return _by_datum(scale)

    @property
    def full_size(self) -> int:
        """The size of the full data set that the data plate declares; 1 without one."""
        return self.runs[0].plates.data.full_size

    def scale_of(self, latent: str) -> float | Tensor:
        """The factor on one latent: a number, or a tensor of one number per datum."""
        return _by_datum(self.weights.model_scales[latent])

    @property
    def elbo(self) -> Tensor:
        """Σ factor · (log p − log q) over sites and data, the mean over particles: a scalar.

        Every site has a factor of its own, as in Pyro's Trace_ELBO.
        """
        w = self.weights
        terms = {**w.log_priors, **w.log_likelihoods}
        model = _scaled_sum(terms, w.model_scales)
        return (model - _scaled_sum(w.log_guides, w.guide_scales)) / w.num_samples

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiplies the gradient in each draw by a factor before it passes on to the guide.

        For particles with `path_only`; otherwise log q does not see the factor.

        Arguments:
            factor: shape (k, num_data), or (k,) if the data share a latent.
        """
        parts = [factor] if len(self.runs) == 1 else factor.split(1)
        for run, part in zip(self.runs, parts, strict=True):
            run.scale_gradients(part)

    def _differing(self, first: str, other: str) -> ContractError:
        """The error for sites with different factors."""
        if not self.runs[0].plates.data.local:
            return ContractError(
                "The data share a latent, so one weight belongs to all of them, and "
                f"{first!r} and {other!r} have different factors (a plate that subsamples?): the "
                "weight of a part of the data gives no bound. Pass all data, or use Trace_ELBO()."
            )
        return ContractError(
            f"A plate or poutine.scale puts different factors on {first!r} and {other!r}, so a "
            "weight is no ratio of densities: give all sites of model and guide the same factor, "
            "or train with BetaELBO or Trace_ELBO."
        )


def particles(
    pair: tuple[Half, Half],
    batch: Any,
    num_particles: int,
    *,
    nesting: int,
    vectorised: bool = True,
    path_only: bool = False,
) -> Particles:
    """Runs a pair at k particles.

    Arguments:
        pair: model and guide, each called with the batch.
        batch: their argument.
        num_particles: k.
        nesting: dimensions that the plates of the pair take.
        vectorised: whether all particles run at once, under a plate left of all others, which is
            correct for a pair that leaves leading dimensions unchanged; else one by one.
        path_only: whether log q(z | x) passes its gradient to the draws alone.

    Returns:
        Particles, whose weights have shape (num_particles, num_data).

    Raises:
        ContractError: the pair fails on the batch, or the guide leaves out a latent or draws it
            without reparameterisation.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.particles import particles
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> particles((lvm.model, lvm.guide), x, 1, nesting=1).elbo.requires_grad
        True
    """
    size, count = None, num_particles
    if vectorised and num_particles > 1:
        size, count = num_particles, 1
    runs = [run_particles(pair, batch, size, nesting, {})]
    for _ in range(count - 1):  # on the subsample of the first
        runs.append(run_particles(pair, batch, size, nesting, runs[0].subsample))
    values = concatenate([_values(run, path_only) for run in runs])
    weights = LogWeights(
        log_likelihoods=values["log_likelihoods"],
        log_priors=values["log_priors"],
        log_guides=values["log_guides"],
        model_scales={name: site["scale"] for name, site in runs[0].model.items()},
        guide_scales={name: site["scale"] for name, site in runs[0].guide.items()},
        latents=values["latents"],
    )
    return Particles(weights, tuple(runs))


def _values(run: ParticleRun, path_only: bool) -> Values:
    """The terms of the log-weights of a run."""
    plates, size = run.plates, run.size
    latents, observed = latents_of(run.model), observed_of(run.model)
    if path_only:
        guide = {
            name: reduce(density, plates.is_in_data(run.guide[name]), size, plates)
            for name, density in path_densities(run).items()
        }
    else:
        guide = log_densities("guide", run.guide, size, plates)
    return {
        "log_likelihoods": log_densities("model", observed, size, plates),
        "log_priors": log_densities("model", latents, size, plates),
        "log_guides": guide,
        "latents": own_values(latents, size or 1, plates.nesting),
    }


def _scaled_sum(terms: dict[str, Tensor], scales: dict[str, Any]) -> Any:
    """Σ factor · log-density over sites, particles and data."""
    return sum((_by_datum(scales[n]) * t.double()).sum() for n, t in terms.items())


def _by_datum(scale: Any) -> Any:
    """A factor as a number, or as a tensor of one number per datum."""
    if not isinstance(scale, Tensor):
        return scale
    return scale.reshape(() if scale.numel() == 1 else (-1,))


def _equal(first: Any, second: Any) -> bool:
    """Whether two factors are equal; tensors are compared only while Pyro validates."""
    if not isinstance(first, Tensor) and not isinstance(second, Tensor):
        return math.isclose(first, second, rel_tol=1e-6)
    if not is_validation_enabled():  # a traced step must not read a value
        return True
    first, second = (torch.as_tensor(s).double().cpu() for s in (first, second))
    return bool(torch.isclose(first, second).all())
