"""Draws: data from the model as a simulator, latents from the guide or resampled by their weights,
and the means of either.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm._runtime.unchanged import not_seeded
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    NotApplicable,
    check_contract,
    device_of,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._enumeration import check_drawable
from vilvm.weights._supports import guide_sites
from vilvm.weights._traces import (
    Put,
    Sites,
    Unobserved,
    family,
    nesting_of,
    own_densities,
    run,
    sites_of,
    strip,
    was_observed,
)
from vilvm.weights._vectorisation import Pass, Values, Ways, at_samples
from vilvm.weights.checks import check_batch, enumerable
from vilvm.weights.layout import Layout, data_plate, find_layout, held_still, place
from vilvm.weights.log_weights import LogWeights, drawn_values, log_weights

__all__ = [
    "draws_in_place",
    "observed",
    "picked_by_weight",
    "posterior",
    "posterior_mean",
    "predict",
    "replicate",
    "resample",
    "sample",
]


def sample(
    lvm: LatentVariableModel, num_samples: int, *, like: Any = None, mean: bool = False
) -> dict[str, Tensor]:
    """Draws from the model as a simulator: latents from the prior, data from the likelihood.

    Arguments:
        lvm: the model and guide; the guide is not run.
        num_samples: independent draws.
        like: a batch, for a model that reads more of it than its length (covariates, say); each
            draw is then a whole batch.
        mean: whether observed sites return the mean of their likelihood in place of a draw.

    Returns:
        Every latent and observed site by name, shape (num_samples, ...), plates before the event;
        (num_samples, num_data, ...) if `like` is given.

    Raises:
        NotApplicable: a ContractError: the model has a ``pyro.factor``, which running it does not
            draw from.
        ContractError: the model cannot run without a batch, and `like` was not given; or a
            likelihood has no mean.

    Example:
        >>> import vilvm
        >>> from vilvm.models.vae import VAE
        >>> vilvm.sample(VAE(data_dim=6, latent_dim=2), 3)["x"].shape
        torch.Size([3, 6])
    """
    draws = draws_in_place(lvm, num_samples, like=like, mean=mean)
    return {
        name: value if axis is None else value.movedim(axis, 0)
        for name, (value, axis) in draws.items()
    }


def draws_in_place(
    lvm: LatentVariableModel, num_samples: int, *, like: Any = None, mean: bool = False
) -> dict[str, tuple[Tensor, int | None]]:
    """The draws of ``sample``, each beside the dimension that its draws take: that of the plate
    over the data, if each draw is a datum.
    """
    check_contract(lvm)
    num_samples = check_number("num_samples", num_samples)
    batch = _placeholder(lvm, 1) if like is None else like
    check_batch(batch)
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        try:
            with not_seeded("model", lvm):
                probe = _simulate(lvm, batch, factors=False)
            simulated = _simulation(lvm, nesting_of(probe), mean)
            values = at_samples(lvm, batch, num_samples, simulated, ways=Ways())["simulated"]
            plate = data_plate(
                Unobserved()(lvm.model), batch, [s for s in probe.values() if was_observed(s)]
            )
        except ContractError as error:
            if like is not None or isinstance(error, NotApplicable):
                raise
            raise ContractError(
                f"{error} To simulate a model that reads its batch, pass like=a batch of data."
            ) from None
        if like is None:
            _check_needs_no_batch(lvm, probe, plate)
    if mean:
        _check_means({n: v for n, v in values.items() if was_observed(probe[n])}, probe)
    draws: dict[str, tuple[Tensor, int | None]] = {}
    for name, value in values.items():
        # The one datum of the placeholder makes room for the draws, each of which is a datum.
        axis = place(probe[name], plate) if like is None else None
        if axis is None or value.shape[axis + 1] != 1:
            draws[name] = value, None
        else:
            draws[name] = value.squeeze(axis + 1).movedim(0, axis), axis
    return draws


def _simulation(lvm: LatentVariableModel, nesting: int, mean: bool) -> Pass:
    """A run of the model with nothing observed; of observed sites the mean of their likelihood, if
    it is asked for.
    """

    def simulate(batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        size, samples = (
            num_samples or 1,
            None if num_samples is None else (num_samples, -1 - nesting),
        )
        with Put(given, num_samples, nesting):
            sites = _simulate(lvm, batch, samples=samples)
        values = {
            n: s["fn"].mean if mean and was_observed(s) else s["value"] for n, s in sites.items()
        }
        latents = {n: s for n, s in sites.items() if not was_observed(s)}
        return {
            "simulated": {n: strip(v, sites[n], size, nesting) for n, v in values.items()},
            "drawn": {
                n: strip(s["value"], s, size, nesting)
                for n, s in (latents if mean else sites).items()
                if family(s["fn"]) != "Delta"
            },
            "densities": own_densities("model", latents if mean else sites, size, nesting),
        }

    return Pass(simulate, f"simulation, mean={mean}")


def posterior(lvm: LatentVariableModel, batch: Any, num_samples: int = 1) -> dict[str, Tensor]:
    """Draws of the latents from the guide, q(z | x).

    Returns:
        Every latent by name, shape (num_samples, num_data, ...); (num_samples, ...) for a latent
        shared by the data.

    Raises:
        ContractError: the pair breaks the contract on this batch (see
            ``vilvm.weights.find_layout``).

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> vilvm.posterior(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=10)["z"].shape
        torch.Size([10, 4, 2])
    """
    return _run_guide(lvm, batch, num_samples, None)["latents"]


@torch.no_grad()
def resample(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int = 1,
    *,
    proposals: int = 1000,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Draws of the latents from the posterior p(z | x), as good as the guide lets them be:
    sampling-importance-resampling.

    For each datum, of `proposals` draws from the guide `num_samples` are picked with replacement,
    with probabilities proportional to their weights. Their distribution goes to p(z | x) as
    `proposals` grows; with an effective sample size of a few, so many different values are all
    that is seen.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: draws to return.
        proposals: draws from the guide to pick them from.
        chunk: proposals a pass, which bounds memory; all at once by default.

    Returns:
        As ``posterior``: every latent by name, shape (num_samples, num_data, ...); (num_samples,
            ...) for a latent shared by the data.

    Raises:
        ContractError: the pair breaks the contract on this batch; its guide is degenerate; or a
            datum has weight zero under all proposals.

    Reference: A noniterative sampling/importance resampling alternative to the data augmentation
    algorithm, Donald B. Rubin, 1987.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> vilvm.resample(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=10, proposals=50)["z"].shape
        torch.Size([10, 4, 2])
    """
    num_samples = check_number("num_samples", num_samples)
    proposals = check_number("proposals", proposals)
    check_batch(batch)
    layout = find_layout(lvm, batch)
    if layout.degenerate:
        raise ContractError(
            f"resample: the guide of {type(lvm).__name__} puts latent {layout.degenerate[0]!r} on "
            "one point, so there is nothing to pick from; give it "
            "a guide with a density (vilvm.wrappers.fit_guide)."
        )
    weights = log_weights(lvm, batch, proposals, chunk=chunk, layout=layout)
    log_w = weights.log_weight
    impossible = (log_w.amax(0) == -torch.inf).nonzero()
    if len(impossible):
        datum = f"datum {int(impossible[0, 0])} of the batch" if log_w.dim() == 2 else "the batch"
        raise ContractError(
            f"resample: {datum} has probability zero under all {proposals} proposals; take more, "
            "or look at the guide."
        )
    return picked_by_weight(weights, num_samples, layout).latents


def picked_by_weight(weights: LogWeights, num_samples: int, layout: Layout) -> LogWeights:
    """`num_samples` of the draws that are weighed, picked with replacement in proportion to their
    weights, for each datum by itself.

    Some draw of each datum has a weight that is not zero.
    """
    log_w = weights.log_weight
    probabilities = (log_w - log_w.amax(0)).exp()
    # (num_samples, num_data or 1)
    picked = probabilities.reshape(len(log_w), -1).T.multinomial(num_samples, replacement=True).T

    def pick(value: Tensor, axis: int | None) -> Tensor:
        if log_w.dim() == 1 or axis is None:
            return value[picked[:, 0]]
        rows = value.movedim(axis, 1)
        return rows[picked, torch.arange(rows.shape[1], device=rows.device)].movedim(1, axis)

    return replace(
        weights,
        latents={n: pick(v, layout.data_axes.get(n)) for n, v in weights.latents.items()},
        log_likelihoods={n: pick(v, 1) for n, v in weights.log_likelihoods.items()},
        log_priors={n: pick(v, 1) for n, v in weights.log_priors.items()},
        log_guides={n: pick(v, 1) for n, v in weights.log_guides.items()},
    )


def posterior_mean(
    lvm: LatentVariableModel, batch: Any, num_samples: int = 1, *, layout: Layout | None = None
) -> dict[str, Tensor]:
    """E[z | x] under the guide: the mean of its distribution where that is known in closed form,
    else of `num_samples` draws.

    A latent that depends on another is averaged over `num_samples` draws of that one.

    Arguments:
        lvm: the model and guide; the guide alone is run.
        batch: what both are called with.
        num_samples: draws, where they are needed.
        layout: the layout of this very batch, which a run of the pair finds if it is not given.

    Returns:
        Every latent by name, shape (num_data, ...); (...) for a latent shared by the data.

    Raises:
        ContractError: the pair breaks the contract on this batch, or a latent has no mean (a
            Categorical).
    """
    return {
        name: value.mean(0)
        for name, value in _run_guide(lvm, batch, num_samples, layout, mean=True)["means"].items()
    }


def predict(
    lvm: LatentVariableModel, latents: Mapping[str, Tensor], *, like: Any = None
) -> dict[str, Tensor]:
    """E[x | z]: the means of the observed sites given values of the latents, which is a decoder
    for any model.

    Arguments:
        lvm: the model and guide; the guide is not run.
        latents: every latent by name, shape (num_data, ...); (...) for a latent shared by the
            data, which needs `like`.
        like: a batch of num_data data, for a model that reads more of it than its length.

    Returns:
        Every observed site by name, shape (num_data, ...).

    Raises:
        ContractError: a latent has no value, the model cannot run without a batch, or a likelihood
            has no mean.
    """
    batch = _batch_around("predict", lvm, latents, like, 0)
    with (
        torch.no_grad(),
        module_parameters(lvm),
        evaluation_mode(lvm),
        Put({n: v[None] for n, v in latents.items()}, None, None),
    ):
        sites = _simulate(lvm, batch)
    missing = [n for n, s in sites.items() if n not in latents and not was_observed(s)]
    if missing:
        raise ContractError(
            f"predict: no value was given for the latent {missing[0]!r}; it has {sorted(latents)}."
        )
    if like is None:
        _check_event_sizes(lvm, sites.values())
    means = {n: s["fn"].mean for n, s in sites.items() if was_observed(s)}
    _check_means(means, sites)
    return means


def replicate(
    lvm: LatentVariableModel, latents: Mapping[str, Tensor], *, like: Any = None
) -> dict[str, Tensor]:
    """Draws from p(x | z) given draws of the latents: with those of ``posterior``, replicated
    data, to be held against the data.

    A latent that is enumerated, and so has no value, is drawn anew from its prior.

    Arguments:
        lvm: the model and guide; the guide is not run.
        latents: draws by name, as ``posterior`` returns them: shape (num_samples, num_data, ...);
            (num_samples, ...) for a latent shared by the data, which needs `like`.
        like: a batch of num_data data, for a model that reads more of it than its length.

    Returns:
        Every observed site by name, shape (num_samples, num_data, ...).

    Raises:
        ContractError: a latent has no value or one of another shape, or the model cannot run
            without a batch.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import replicate
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> replicate(lvm, vilvm.posterior(lvm, x, 10))["x"].shape
        torch.Size([10, 4, 6])
    """
    batch = _batch_around("replicate", lvm, latents, like, 1)
    num_samples = {len(v) if v.dim() else 0 for v in latents.values()}
    if len(num_samples) != 1:
        raise ContractError(
            "replicate: the latents must have one and the same number of draws first; they have "
            f"{sorted(num_samples)}."
        )
    size = num_samples.pop()
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        model = Unobserved()(lvm.model)
        with Put({n: v[:1] for n, v in latents.items()}, None, None):
            probe = sites_of(run(model, "model", batch))
        missing = [
            n
            for n, s in probe.items()
            if not (n in latents or was_observed(s) or enumerable(s) or family(s["fn"]) == "Unit")
        ]
        if missing:
            raise ContractError(
                f"replicate: no draws were given of the latent {missing[0]!r}; there are those of "
                f"{sorted(latents)}."
            )
        if like is None:
            _check_event_sizes(lvm, probe.values())
        if any(enumerable(s) and n not in latents for n, s in probe.items()):
            check_drawable("replicate", lvm, batch, latents, nesting_of(probe))
        values = at_samples(
            lvm, batch, size, _simulation(lvm, nesting_of(probe), mean=False), latents, ways=Ways()
        )["simulated"]
    return {n: v for n, v in values.items() if was_observed(probe[n])}


def observed(lvm: LatentVariableModel, batch: Any) -> dict[str, Tensor]:
    """The values that the model observes of a batch, by site, as ``replicate`` returns them but
    for the samples.

    Returns:
        Every observed site by name, shape (num_data, ...), plates before the event.

    Raises:
        ContractError: the pair cannot run on this batch.

    Example:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import observed
        >>> observed(VAE(data_dim=6, latent_dim=2), torch.ones(4, 6))["x"].sum()
        tensor(24.)
    """
    check_contract(lvm)
    check_batch(batch)
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        sites = sites_of(run(lvm.model, "model", batch, run(lvm.guide, "guide", batch)))
    nesting, seen = (
        nesting_of(sites),
        {n: s for n, s in sites.items() if s["is_observed"] and family(s["fn"]) != "Unit"},
    )
    return {
        n: strip(s["value"].expand(s["fn"].shape()).unsqueeze(0), s, 1, nesting)[0]
        for n, s in seen.items()
    }


def _batch_around(
    what: str, lvm: LatentVariableModel, latents: Mapping[str, Tensor], like: Any, axis: int
) -> Any:
    """`like`, or a placeholder of as many data as the first latent has along `axis`."""
    check_contract(lvm)
    if not isinstance(latents, Mapping) or not all(
        isinstance(v, Tensor) for v in latents.values()
    ):
        raise ContractError(
            f"{what}: latents must be a dict of tensors by name; got a {type(latents).__name__}."
        )
    first = next((v for v in latents.values()), None)
    if like is None and (first is None or first.dim() <= axis):
        shape = "(num_data, ...)" if axis == 0 else "(num_samples, num_data, ...)"
        raise ContractError(
            f"{what}: no latent tells the number of data; give each a value of shape {shape}, or "
            "pass like=."
        )
    batch = _placeholder(lvm, first.shape[axis]) if like is None and first is not None else like
    check_batch(batch)
    return batch


def _run_guide(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int,
    layout: Layout | None,
    mean: bool = False,
) -> Values:
    """The latents that the guide draws; with `mean`, the means of their distributions where these
    are known, under "means".
    """
    num_samples = check_number("num_samples", num_samples)
    check_batch(batch)
    layout = find_layout(lvm, batch) if layout is None else layout
    sites: Sites = {}

    def draw(batch: Any, given: Mapping[str, Tensor], number: int | None) -> Values:
        with Put(given, number, layout.nesting):
            found = guide_sites(
                run(lvm.guide, "guide", batch, held_still(layout), samples=layout.samples(number))
            )
        sites.update(found)
        size, of_latents = number or 1, {n: found[n] for n in layout.latents}
        values = {
            "latents": {
                n: strip(s["value"], s, size, layout.nesting) for n, s in of_latents.items()
            },
            "drawn": drawn_values(found, size, layout),
            "densities": own_densities("guide", found, size, layout.nesting),
        }
        if mean:
            values["means"] = {
                n: strip(_mean_or_value(s).expand(s["value"].shape), s, size, layout.nesting)
                for n, s in of_latents.items()
            }
        return values

    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        values = at_samples(
            lvm,
            batch,
            num_samples,
            Pass(draw, f"draws of the guide, mean={mean}"),
            ways=layout.ways,
        )
    _check_means(values.get("means", {}), sites)
    return values


def _mean_or_value(site: Any) -> Tensor:
    try:
        return site["fn"].mean
    except NotImplementedError:
        return site["value"]


def _simulate(
    lvm: LatentVariableModel,
    batch: Any,
    *,
    samples: tuple[int, int] | None = None,
    factors: bool = True,
) -> Sites:
    """The model's sites with nothing observed, factors left out, or refused unless they are
    allowed.
    """
    sites = sites_of(run(Unobserved()(lvm.model), "model", batch, samples=samples))
    factor = next((n for n, s in sites.items() if family(s["fn"]) == "Unit"), None)
    if factor is not None and not factors:
        raise NotApplicable(
            f"{type(lvm).__name__} cannot be simulated: its pyro.factor {factor!r} changes its "
            "density, and not what running it draws. "
            "Write it as a distribution, or do without simulated data."
        )
    return {n: s for n, s in sites.items() if family(s["fn"]) != "Unit"}


def _check_needs_no_batch(lvm: LatentVariableModel, sites: Sites, plate: Any) -> None:
    """Raises ContractError if the model has read from a placeholder what only a batch can log."""
    _check_event_sizes(lvm, sites.values())
    observed = {n for n, s in sites.items() if was_observed(s)}
    longer = sites if plate is not None else _simulate(lvm, _placeholder(lvm, 2))
    shapes = [{n: tuple(s["value"].shape) for n, s in run_.items()} for run_ in (sites, longer)]
    if not observed or shapes[0] != shapes[1]:
        raise ContractError(
            f"{type(lvm).__name__} reads its batch, so it cannot be simulated without one: pass "
            "like=a batch of data."
        )


def _check_event_sizes(lvm: object, sites: Iterable[Any]) -> None:
    empty = [s["name"] for s in sites if s["value"].numel() == 0]
    if empty:
        raise ContractError(
            f"{type(lvm).__name__} takes the size of {empty[0]!r} from its batch, so it cannot "
            "run without one: pass like=a batch of data."
        )


def _check_means(means: Mapping[str, Tensor], sites: Sites) -> None:
    for name, mean in means.items():
        if bool(mean.isnan().any()):
            raise ContractError(
                f"Site {name!r} is {family(sites[name]['fn'])}, which has no mean; use draws "
                "(sample, posterior)."
            )


def _placeholder(lvm: object, num_data: int) -> Tensor:
    """A batch that has a length and nothing else, where the model is."""
    return torch.empty(num_data, 0, device=device_of(lvm, torch.get_default_device()))
