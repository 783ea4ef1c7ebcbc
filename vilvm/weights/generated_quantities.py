"""Runs of the model at given latents, with nothing observed.

Given draws z₁ … z_S, one pass under a plate over samples draws x̃ₛ ~ p(x | zₛ) for every observed
site: predictive draws of the posterior if the z are its draws, of the prior if none is given. It
also returns every ``pyro.deterministic`` value f(zₛ).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to

from vilvm._runtime.argument_checks import check_number
from vilvm._runtime.random import preserved_rng
from vilvm.data.tensors import tensors_of
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._conditioning import at_samples
from vilvm.weights._enumeration import check_drawable
from vilvm.weights._passes import Pass, Values
from vilvm.weights._sites import (
    Sites,
    deterministic_of,
    family,
    own_densities,
    own_dims,
    own_values,
    to_own_dims,
    was_observed,
)
from vilvm.weights._traces import Unobserved, run
from vilvm.weights._vectorisation import run_at_samples
from vilvm.weights.checks import as_batch
from vilvm.weights.layout import Layout, find_layout

__all__ = ["Replay", "derived_values", "replay"]


class Replay(NamedTuple):
    """The sites of a model at given latents, by name; S is num_samples.

    Arguments:
        latents: as given or drawn from the prior, shape (S, *plates, *event).
        observed: new draws of the observed sites, shape (S, *plates, *event).
        deterministics: values of ``pyro.deterministic``, shape (S, *plates, *event).
        recorded: the values of the observed sites in this batch, shape (*plates, *event).
        data_axes: by site, the dimension of its draws that is over the data (dimension 0 is the
            samples); sites that the data share are left out.
    """

    latents: dict[str, Tensor]
    observed: dict[str, Tensor]
    deterministics: dict[str, Tensor]
    recorded: dict[str, Tensor]
    data_axes: dict[str, int]


@torch.no_grad()
def replay(
    lvm: LatentVariableModel,
    batch: Any,
    latents: Mapping[str, Tensor] | None = None,
    *,
    num_samples: int | None = None,
    layout: Layout | None = None,
) -> Replay:
    """Runs the model once at all draws of its latents, with nothing observed.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with; the model may also read values that it does not observe.
        latents: draws by latent, as ``posterior`` returns them: shape (S, num_data, ...), or (S,
            ...) if the data share it. Other latents are drawn from their prior; values of
            deterministic sites are ignored.
        num_samples: S, where no latent is given.
        layout: the layout of this very batch; by default a run of the pair finds it.

    Returns:
        Replay.

    Raises:
        ContractError: the pair breaks the contract, a latent is unknown or of another shape, or a
            prior cannot be drawn from.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.generated_quantities import replay
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> replay(lvm, x, vilvm.posterior(lvm, x, num_samples=10)).observed["x"].shape
        torch.Size([10, 4, 6])
    """
    batch = as_batch(lvm, batch)
    layout = layout or find_layout(lvm, batch, any_data=True)
    given = {n: v for n, v in (latents or {}).items() if n not in layout.derived}
    samples = _number_of_draws(given, num_samples)
    _check_known_latents(lvm, given, layout)
    first = {name: value[:1] for name, value in given.items()}
    with module_parameters(lvm), evaluation_mode(lvm):
        if given and set(layout.enumerated) - set(given):
            check_drawable("replay", lvm, batch, given, layout.nesting)
        single = _run(lvm, batch, first, None, layout)
        pass_ = _replay_pass(lvm, layout, single)
        values = run_at_samples(
            lvm, batch, samples, pass_, given, vectorisation=layout.vectorisation
        )
        moving = _moving(lvm, batch, given, single, layout)
    axes = _axes(single, moving, layout)
    result = Replay({}, {}, values.get("deterministics", {}), {}, axes)
    for name, value in values["sites"].items():
        if was_observed(single[name]):
            result.observed[name] = value
            result.recorded[name] = _recorded(single[name], layout)
        else:
            result.latents[name] = value
    return result


@torch.no_grad()
def derived_values(
    lvm: LatentVariableModel,
    batch: Any,
    latents: Mapping[str, Tensor],
    layout: Layout,
) -> dict[str, Tensor]:
    """The values of ``pyro.deterministic`` at draws of the latents, the data being observed.

    Arguments:
        lvm: the model and guide; the guide is not run.
        batch: what both are called with.
        latents: draws of every latent of the guide, shape (S, num_data, ...).
        layout: the layout of this very batch.

    Returns:
        By site, shape (S, *plates, *event). Nothing if the model has enumerated latents: their
        draws are of the prior.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     twice = pyro.deterministic("twice", 2 * z)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(twice, 1.0), obs=x)
        >>> lvm = vilvm.Pair(model, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)))
        >>> draws = vilvm.posterior(lvm, torch.zeros(3), num_samples=5)
        >>> bool((draws["twice"] == 2 * draws["z"]).all())
        True
    """
    if not latents or not layout.derived or layout.enumerated:
        return {}
    first = {name: value[:1] for name, value in latents.items()}

    def derived(
        batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        sites = _derived_sites(lvm, batch, given, num_samples, layout)
        return {
            "deterministics": {
                name: _deterministic(
                    site, single[name]["value"].shape, num_samples or 1, layout
                )
                for name, site in sites.items()
            }
        }

    with module_parameters(lvm), evaluation_mode(lvm):
        single = _derived_sites(lvm, batch, first, None, layout)
        values = run_at_samples(
            lvm,
            batch,
            len(next(iter(latents.values()))),
            Pass(derived, "deterministic values"),
            latents,
            vectorisation=layout.vectorisation,
        )
    return values["deterministics"]


def _derived_sites(
    lvm: LatentVariableModel,
    batch: Any,
    given: Mapping[str, Tensor],
    num_samples: int | None,
    layout: Layout,
) -> Sites:
    """The deterministic sites of the model at given latents."""

    def half(batch: Any) -> Any:
        with at_samples(given, num_samples, layout.nesting):
            return lvm.model(batch)

    fixed, samples = layout.fixed_subsample(), layout.samples(num_samples)
    return deterministic_of(run(half, "model", batch, fixed, samples=samples))


def _number_of_draws(given: Mapping[str, Tensor], num_samples: int | None) -> int:
    sizes = {len(value) for value in given.values()}
    if num_samples is not None:
        sizes.add(num_samples)
    if not sizes:
        raise ContractError(
            "replay: no latent is given; pass the number of draws, num_samples."
        )
    if len(sizes) > 1:
        raise ContractError(
            f"replay: the latents hold {sorted(sizes)} draws; give the same number of each."
        )
    return check_number("num_samples", sizes.pop())


def _check_known_latents(
    lvm: object, given: Mapping[str, Tensor], layout: Layout
) -> None:
    unknown = sorted(set(given) - {*layout.latents, *layout.enumerated})
    if unknown:
        raise ContractError(
            f"replay: {type(lvm).__name__} has no latent {unknown[0]!r}; it has "
            f"{list(layout.latents)}."
        )


def _is_deterministic(site: Any) -> bool:
    return bool(site["infer"].get("_deterministic"))


def _recorded(site: Any, layout: Layout) -> Tensor:
    """The value that a site observes in the batch."""
    # one number may stand for a whole plate
    value = site["infer"]["obs"].expand(site["fn"].shape())
    return to_own_dims(value, site, 1, layout.nesting)[0]


def _replay_pass(lvm: LatentVariableModel, layout: Layout, single: Sites) -> Pass:
    """A pass of the model at given latents: draws of its sites, and deterministic values."""

    def replayed(
        batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        sites, size = _run(lvm, batch, given, num_samples, layout), num_samples or 1
        made = {n: site for n, site in sites.items() if _is_deterministic(site)}
        drawn = {n: site for n, site in sites.items() if n not in made}
        values = own_values(drawn, size, layout.nesting)
        return {
            "sites": values,
            "deterministics": {
                n: _deterministic(site, single[n]["value"].shape, size, layout)
                for n, site in made.items()
            },
            "drawn": {
                n: v for n, v in values.items() if family(drawn[n]["fn"]) != "Delta"
            },
            "densities": own_densities("model", drawn, size, layout.nesting),
        }

    return Pass(replayed, "replay")


def _run(
    lvm: LatentVariableModel,
    batch: Any,
    given: Mapping[str, Tensor],
    num_samples: int | None,
    layout: Layout,
) -> Sites:
    """The sites of the model by name, deterministic ones included, without factors."""

    def half(batch: Any) -> Any:
        with at_samples(given, num_samples, layout.nesting), Unobserved():
            return lvm.model(batch)

    fixed, samples = layout.fixed_subsample(), layout.samples(num_samples)
    nodes: dict[str, Any] = dict(
        run(half, "model", batch, fixed, samples=samples).nodes
    )
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and family(site["fn"]) not in ("_Subsample", "Unit")
    }


# Deterministic values
# --------------------------------------------------------------------------------------------


def _moving(
    lvm: LatentVariableModel,
    batch: Any,
    given: Mapping[str, Tensor],
    single: Sites,
    layout: Layout,
) -> set[str]:
    """The sites whose value depends on the given latents."""
    nearby = {
        name: to_own_dims(_nearby(single[name]), single[name], 1, layout.nesting)
        for name in given
    }
    with preserved_rng(tensors_of(batch)[0].device):
        other = _run(lvm, batch, nearby, None, layout)
    return {
        n
        for n, site in single.items()
        if not torch.equal(site["value"], other[n]["value"])
    }


def _nearby(site: Any) -> Tensor:
    """A value near the value of a site, within its support; the same value if it is discrete."""
    try:
        bijection = biject_to(site["fn"].support)
    except NotImplementedError:
        return site["value"]
    return bijection(1.001 * bijection.inv(site["value"]) + 0.001)


def _deterministic(
    site: Any, single: torch.Size | None, num_samples: int, layout: Layout
) -> Tensor:
    """A deterministic value in shape (S, *plates, *event).

    Pyro does not record which of its dimensions belong to the event.

    Arguments:
        site: of a run under a plate over samples, or of a single-sample run.
        single: the shape of the value in a single-sample run; None if this is one. A value of that
            shape does not depend on the draws; others have a sample dimension left of the plates.
        num_samples: of the run.
        layout: of the run.
    """
    value = _with_sample_dim(site, single, num_samples, layout.nesting)
    kept = [
        value.shape[1 + layout.nesting + dim] for dim in _kept_dims(site, value, layout)
    ]
    return value.reshape(num_samples, *kept, *value.shape[1 + layout.nesting :])


def _with_sample_dim(
    site: Any, single: torch.Size | None, num_samples: int, nesting: int
) -> Tensor:
    value = site["value"]
    if single is None or value.shape == single:
        value = value.reshape((1,) * (nesting - value.dim()) + value.shape)
        return value.expand(num_samples, *value.shape)
    if value.dim() <= nesting:
        raise ContractError(
            f"The deterministic value {site['name']!r} has shape {tuple(value.shape)} under "
            f"{num_samples} samples, and has lost their dimension on the left: reduce over "
            "dimensions counted from the right."
        )
    return value.expand(num_samples, *value.shape[1:])


def _kept_dims(site: Any, value: Tensor, layout: Layout) -> list[int]:
    """The plate dimensions of a value that are its own or larger than one."""
    own = own_dims(site)
    return [
        dim
        for dim in range(-layout.nesting, 0)
        if dim in own or value.shape[1 + layout.nesting + dim] > 1
    ]


def _axes(sites: Sites, moving: Any, layout: Layout) -> dict[str, int]:
    """The axis of the data of each site that has one, by name."""
    axes = {n: _axis(site, n in moving, layout) for n, site in sites.items()}
    return {n: axis for n, axis in axes.items() if axis is not None}


def _axis(site: Any, moves: bool, layout: Layout) -> int | None:
    """The dimension of a site's draws that is over the data, or None.

    With `moves`, the value depends on the given latents.
    """
    if not _is_deterministic(site):
        return layout.data_axis(site)
    value, dim = _with_sample_dim(site, None, 1, layout.nesting), layout.data_dim
    kept = _kept_dims(site, value, layout)
    if dim is None or dim not in kept or not (moves or dim in own_dims(site)):
        return None
    if value.shape[1 + layout.nesting + dim] != layout.num_data:
        return None
    return 1 + kept.index(dim)
