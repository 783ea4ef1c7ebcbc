"""Draws of a pair: data from the model, latents from the guide or resampled, and their means."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

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
from vilvm.weights._conditioning import at_draw, at_samples, drawn_values
from vilvm.weights._data_plate import find_data_plate, in_plate, plate_axis
from vilvm.weights._enumeration import check_drawable
from vilvm.weights._passes import Pass, Values
from vilvm.weights._sites import (
    Sites,
    family,
    nesting_of,
    observed_of,
    own_densities,
    sites_of,
    to_own_dims,
    was_observed,
)
from vilvm.weights._supports import guide_sites
from vilvm.weights._traces import Unobserved, run
from vilvm.weights._vectorisation import Vectorisation, run_at_samples
from vilvm.weights.checks import check_batch, enumerable
from vilvm.weights.layout import Layout, find_layout
from vilvm.weights.log_weights import LogWeights, log_weights

__all__ = [
    "SiteDraws",
    "draws_by_site",
    "observed",
    "picked_by_weight",
    "posterior",
    "posterior_mean",
    "predict",
    "replicate",
    "resample",
    "sample",
]


# From the model
# --------------------------------------------------------------------------------------------


class SiteDraws(NamedTuple):
    """The draws of one site of a simulated model.

    Arguments:
        value: the draws, shape (num_samples, ...), or (..., num_samples, ...) along `axis`.
        axis: the dimension of the draws, where each is a datum of the data plate; else None.
        observed: whether the model observes the site.
    """

    value: Tensor
    axis: int | None
    observed: bool


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
        NotApplicable: a ContractError: the model has a ``pyro.factor``, which changes its density
            but not its draws.
        ContractError: the model cannot run without a batch, and `like` is not given; or a
            likelihood has no mean.

    Example:
        >>> import vilvm
        >>> from vilvm.models.vae import VAE
        >>> vilvm.sample(VAE(data_dim=6, latent_dim=2), 3)["x"].shape
        torch.Size([3, 6])
    """
    draws = draws_by_site(lvm, num_samples, like=like, mean=mean)
    return {name: site.value.movedim(site.axis or 0, 0) for name, site in draws.items()}


def draws_by_site(
    lvm: LatentVariableModel, num_samples: int, *, like: Any = None, mean: bool = False
) -> dict[str, SiteDraws]:
    """The draws of ``sample``, with those of a datum's plates left in place.

    Arguments:
        lvm: the model and guide; the guide is not run.
        num_samples: independent draws.
        like: a batch, for a model that reads more of it than its length.
        mean: whether observed sites return the mean of their likelihood in place of a draw.

    Returns:
        SiteDraws by site.

    Raises:
        ContractError: as ``sample``.

    Example:
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.sampling import draws_by_site
        >>> draws_by_site(VAE(data_dim=6, latent_dim=2), 3)["x"].axis
        0
    """
    check_contract(lvm)
    num_samples = check_number("num_samples", num_samples)
    batch = like
    if like is None:
        batch = _placeholder(lvm, 1)
    check_batch(batch)
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        try:
            with not_seeded("model", lvm):
                probe = _run_unobserved(lvm, batch)
                _check_no_factor(lvm, probe)
            probe = _without_factors(probe)
            one = _simulation(lvm, nesting_of(probe), mean)
            values = run_at_samples(lvm, batch, num_samples, one, vectorisation=Vectorisation())[
                "simulated"
            ]
            plate = _data_plate_of_simulated(lvm, batch, probe)
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
    if like is not None:
        plate = None
    return {name: _site_draws(value, probe[name], plate) for name, value in values.items()}


def _data_plate_of_simulated(lvm: LatentVariableModel, batch: Any, sites: Sites) -> Any:
    data = [site for site in sites.values() if was_observed(site)]
    return find_data_plate(Unobserved()(lvm.model), batch, data)


def _site_draws(value: Tensor, site: Any, plate: Any) -> SiteDraws:
    """Draws with one datum in `plate`, whose dimension they take: each draw is a datum."""
    if plate is not None and in_plate(site, plate.name):
        axis = plate_axis(site, plate)
        if value.shape[axis + 1] == 1:
            draws = value.squeeze(axis + 1).movedim(0, axis)
            return SiteDraws(draws, axis, was_observed(site))
    return SiteDraws(value, None, was_observed(site))


def _simulation(lvm: LatentVariableModel, nesting: int, mean: bool) -> Pass:
    """A run of the model with nothing observed.

    With `mean`, observed sites give the mean of their likelihood.
    """

    def simulate(batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        samples, size = None, num_samples or 1
        if num_samples is not None:
            samples = num_samples, -1 - nesting
        with at_samples(given, num_samples, nesting):
            sites = _without_factors(_run_unobserved(lvm, batch, samples))
        means, drawn = {}, sites
        if mean:
            drawn = {name: site for name, site in sites.items() if not was_observed(site)}
            means = {name: sites[name]["fn"].mean for name in sites if name not in drawn}
        values = {name: site["value"] for name, site in sites.items()} | means
        random = {name: site for name, site in drawn.items() if family(site["fn"]) != "Delta"}
        return {
            "simulated": {n: to_own_dims(v, sites[n], size, nesting) for n, v in values.items()},
            "drawn": {n: to_own_dims(s["value"], s, size, nesting) for n, s in random.items()},
            "densities": own_densities("model", drawn, size, nesting),
        }

    return Pass(simulate, f"simulation, mean={mean}")


def _run_unobserved(
    lvm: LatentVariableModel, batch: Any, samples: tuple[int, int] | None = None
) -> Sites:
    """The model's sites with nothing observed, factors among them."""
    return sites_of(run(Unobserved()(lvm.model), "model", batch, samples=samples))


def _without_factors(sites: Sites) -> Sites:
    return {n: site for n, site in sites.items() if family(site["fn"]) != "Unit"}


def _check_no_factor(lvm: object, sites: Sites) -> None:
    for name, site in sites.items():
        if family(site["fn"]) == "Unit":
            raise NotApplicable(
                f"{type(lvm).__name__} cannot be simulated: its pyro.factor {name!r} changes its "
                "density, but not its draws. Write it as a distribution, or do without simulated "
                "data."
            )


def _check_needs_no_batch(lvm: LatentVariableModel, sites: Sites, plate: Any) -> None:
    """Raises ContractError if the model reads more than a length from its batch."""
    _check_event_sizes(lvm, sites.values())
    longer = sites
    if plate is None:
        longer = _without_factors(_run_unobserved(lvm, _placeholder(lvm, 2)))
    observes = any(was_observed(site) for site in sites.values())
    if not observes or _shapes(sites) != _shapes(longer):
        raise ContractError(
            f"{type(lvm).__name__} reads its batch, so it cannot be simulated without one: pass "
            "like=a batch of data."
        )


def _shapes(sites: Sites) -> dict[str, tuple[int, ...]]:
    return {name: tuple(site["value"].shape) for name, site in sites.items()}


# From the guide
# --------------------------------------------------------------------------------------------


def posterior(lvm: LatentVariableModel, batch: Any, num_samples: int = 1) -> dict[str, Tensor]:
    """Draws of the latents from the guide, q(z | x).

    Arguments:
        lvm: the model and guide; the guide alone is drawn from.
        batch: what both are called with.
        num_samples: draws per datum.

    Returns:
        Every latent by name, shape (num_samples, num_data, ...); (num_samples, ...) for a latent
        that the data share.

    Raises:
        ContractError: the pair breaks the contract on this batch (see
            ``vilvm.weights.find_layout``).

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> vilvm.posterior(lvm, x, num_samples=10)["z"].shape
        torch.Size([10, 4, 2])
    """
    return _run_guide(lvm, batch, num_samples)["latents"]


@torch.no_grad()
def resample(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int = 1,
    *,
    proposals: int = 1000,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Approximate draws of the latents from the posterior: sampling-importance-resampling.

    For each datum, `num_samples` of `proposals` draws from the guide are picked with replacement,
    with probabilities proportional to their weights. Their distribution converges to p(z | x) as
    `proposals` grows. At a small effective sample size, only about as many of them are distinct.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: draws to return.
        proposals: draws from the guide to pick them from.
        chunk: proposals per pass, which bounds memory; all at once by default.

    Returns:
        Every latent by name, shape (num_samples, num_data, ...); (num_samples, ...) for a latent
        that the data share.

    Raises:
        ContractError: the pair breaks the contract on this batch; its guide is degenerate; or a
            datum has weight zero under all proposals.

    Reference: A noniterative sampling/importance resampling alternative to the data augmentation
    algorithm, Donald B. Rubin, 1987.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> vilvm.resample(lvm, x, num_samples=10, proposals=50)["z"].shape
        torch.Size([10, 4, 2])
    """
    num_samples = check_number("num_samples", num_samples)
    proposals = check_number("proposals", proposals)
    check_batch(batch)
    layout = find_layout(lvm, batch)
    if layout.degenerate:
        raise ContractError(
            f"resample: the guide of {type(lvm).__name__} puts latent {layout.degenerate[0]!r} on "
            "one point, so there is nothing to pick from; give it a guide with a density "
            "(vilvm.wrappers.fit_guide)."
        )
    weights = log_weights(lvm, batch, proposals, chunk=chunk, layout=layout)
    impossible = (weights.log_weight.amax(0) == -torch.inf).nonzero()
    if len(impossible):
        where = "".join(f"datum {int(i)} of " for i in impossible[0])
        raise ContractError(
            f"resample: {where}the batch has probability zero under all {proposals} proposals; "
            "take more, or check the guide."
        )
    return picked_by_weight(weights, num_samples, layout).latents


def picked_by_weight(weights: LogWeights, num_samples: int, layout: Layout) -> LogWeights:
    """Draws picked with replacement in proportion to their weights, separately for each datum.

    Arguments:
        weights: of at least one draw of each datum whose weight is not zero.
        num_samples: draws to pick.
        layout: the layout of the batch.

    Returns:
        LogWeights of shape (num_samples, num_data), in nats per datum.

    Example:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import find_layout, log_weights
        >>> from vilvm.weights.sampling import picked_by_weight
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> picked_by_weight(log_weights(lvm, x, 50), 3, find_layout(lvm, x)).log_weight.shape
        torch.Size([3, 4])
    """
    log_w = weights.log_weight
    probabilities = (log_w - log_w.amax(0)).exp()
    # (num_samples, num_data or 1)
    picked = probabilities.reshape(len(log_w), -1).T.multinomial(num_samples, replacement=True).T

    def pick(value: Tensor, axis: int | None = 1) -> Tensor:
        if log_w.dim() == 1 or axis is None:
            return value[picked[:, 0]]
        rows = value.movedim(axis, 1)
        return rows[picked, torch.arange(rows.shape[1], device=rows.device)].movedim(1, axis)

    return replace(
        weights,
        latents={n: pick(v, layout.data_axes.get(n)) for n, v in weights.latents.items()},
        log_likelihoods={n: pick(v) for n, v in weights.log_likelihoods.items()},
        log_priors={n: pick(v) for n, v in weights.log_priors.items()},
        log_guides={n: pick(v) for n, v in weights.log_guides.items()},
    )


def posterior_mean(
    lvm: LatentVariableModel, batch: Any, num_samples: int = 1, *, layout: Layout | None = None
) -> dict[str, Tensor]:
    """E[z | x] under the guide, in closed form or as the mean of `num_samples` draws.

    A latent that depends on another is averaged over `num_samples` draws of that one.

    Arguments:
        lvm: the model and guide; the guide alone is drawn from.
        batch: what both are called with.
        num_samples: draws, where they are needed.
        layout: the layout of this very batch; by default a run of the pair finds it.

    Returns:
        Every latent by name, shape (num_data, ...); (...) for a latent that the data share.

    Raises:
        ContractError: the pair breaks the contract on this batch, or a latent has no mean (a
            Categorical).

    Example:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import posterior_mean
        >>> posterior_mean(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6))["z"].shape
        torch.Size([4, 2])
    """
    means = _run_guide(lvm, batch, num_samples, layout, mean=True)["means"]
    return {name: value.mean(0) for name, value in means.items()}


def _run_guide(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int,
    layout: Layout | None = None,
    mean: bool = False,
) -> Values:
    """The latents that the guide draws, under "latents".

    With `mean`, the means of their distributions are under "means"; a draw stands for a mean
    without a closed form.
    """
    num_samples = check_number("num_samples", num_samples)
    check_batch(batch)
    layout = layout or find_layout(lvm, batch)
    sites: Sites = {}  # of the last run
    one = _guide_pass(lvm, layout, mean, sites)
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        values = run_at_samples(lvm, batch, num_samples, one, vectorisation=layout.vectorisation)
    _check_means(values.get("means", {}), sites)
    return values


def _guide_pass(lvm: LatentVariableModel, layout: Layout, mean: bool, sites: Sites) -> Pass:
    """A run of the guide, which also writes its sites to `sites`."""

    def draw(batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        samples, fixed = layout.samples(num_samples), layout.fixed_subsample()
        with at_samples(given, num_samples, layout.nesting):
            found = guide_sites(run(lvm.guide, "guide", batch, fixed, samples=samples))
        sites.update(found)
        size, latents = num_samples or 1, {n: found[n] for n in layout.latents}
        values = {
            "latents": {
                n: to_own_dims(site["value"], site, size, layout.nesting)
                for n, site in latents.items()
            },
            "drawn": drawn_values(found, size, layout.nesting),
            "densities": own_densities("guide", found, size, layout.nesting),
        }
        if mean:
            values["means"] = {
                n: to_own_dims(_mean_or_value(site), site, size, layout.nesting)
                for n, site in latents.items()
            }
        return values

    return Pass(draw, f"draws of the guide, mean={mean}")


def _mean_or_value(site: Any) -> Tensor:
    try:
        return site["fn"].mean.expand(site["value"].shape)
    except NotImplementedError:
        return site["value"]


def _check_means(means: Mapping[str, Tensor], sites: Sites) -> None:
    for name, mean in means.items():
        if bool(mean.isnan().any()):
            raise ContractError(
                f"Site {name!r} is {family(sites[name]['fn'])}, which has no mean; use draws "
                "(sample, posterior)."
            )


# From the model at given latents
# --------------------------------------------------------------------------------------------


def predict(
    lvm: LatentVariableModel, latents: Mapping[str, Tensor], *, like: Any = None
) -> dict[str, Tensor]:
    """E[x | z]: the means of the observed sites given latents, which is a decoder of any model.

    Arguments:
        lvm: the model and guide; the guide is not run.
        latents: every latent by name, shape (num_data, ...); (...) for a latent that the data
            share, which needs `like`.
        like: a batch of num_data data, for a model that reads more of it than its length.

    Returns:
        Every observed site by name, shape (num_data, ...).

    Raises:
        ContractError: a latent has no value, the model cannot run without a batch, or a likelihood
            has no mean.

    Example:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import predict
        >>> predict(VAE(data_dim=6, latent_dim=2), {"z": torch.zeros(4, 2)})["x"].shape
        torch.Size([4, 6])
    """
    batch = _batch_around("predict", lvm, latents, like, 0)
    with (
        torch.no_grad(),
        module_parameters(lvm),
        evaluation_mode(lvm),
        at_draw({name: value[None] for name, value in latents.items()}),
    ):
        sites = _without_factors(_run_unobserved(lvm, batch))
    missing = [n for n, site in sites.items() if n not in latents and not was_observed(site)]
    if missing:
        raise ContractError(
            f"predict: no value was given for the latent {missing[0]!r}; it has {sorted(latents)}."
        )
    if like is None:
        _check_event_sizes(lvm, sites.values())
    means = {n: site["fn"].mean for n, site in sites.items() if was_observed(site)}
    _check_means(means, sites)
    return means


def replicate(
    lvm: LatentVariableModel, latents: Mapping[str, Tensor], *, like: Any = None
) -> dict[str, Tensor]:
    """Draws from p(x | z) given draws of the latents.

    With draws of ``posterior``, these are replicated data, to be compared with the data. An
    enumerated latent has no value and is drawn from its prior.

    Arguments:
        lvm: the model and guide; the guide is not run.
        latents: draws by name, as ``posterior`` returns them: shape (num_samples, num_data, ...);
            (num_samples, ...) for a latent that the data share, which needs `like`.
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
    num_samples = _only_number_of_draws(latents)
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        with at_draw({name: value[:1] for name, value in latents.items()}):
            probe = _run_unobserved(lvm, batch)
        _check_all_given(latents, probe)
        if like is None:
            _check_event_sizes(lvm, probe.values())
        nesting = nesting_of(probe)
        if any(enumerable(site) and n not in latents for n, site in probe.items()):
            check_drawable("replicate", lvm, batch, latents, nesting)
        one = _simulation(lvm, nesting, mean=False)
        values = run_at_samples(
            lvm, batch, num_samples, one, latents, vectorisation=Vectorisation()
        )["simulated"]
    return {n: value for n, value in values.items() if was_observed(probe[n])}


def _only_number_of_draws(latents: Mapping[str, Tensor]) -> int:
    numbers = {value.shape[0] if value.dim() else 0 for value in latents.values()}
    if len(numbers) != 1:
        raise ContractError(
            "replicate: the latents must have one and the same number of draws first; they have "
            f"{sorted(numbers)}."
        )
    return numbers.pop()


def _check_all_given(latents: Mapping[str, Tensor], sites: Sites) -> None:
    for name, site in sites.items():
        needs_no_value = was_observed(site) or enumerable(site) or family(site["fn"]) == "Unit"
        if name not in latents and not needs_no_value:
            raise ContractError(
                f"replicate: no draws were given of the latent {name!r}; there are those of "
                f"{sorted(latents)}."
            )


def observed(lvm: LatentVariableModel, batch: Any) -> dict[str, Tensor]:
    """The values that the model observes of a batch, in the shapes of ``replicate``.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.

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
    nesting, values = nesting_of(sites), {}
    for name, site in _without_factors(observed_of(sites)).items():
        value = site["value"].expand(site["fn"].shape()).unsqueeze(0)
        values[name] = to_own_dims(value, site, 1, nesting)[0]
    return values


def _batch_around(
    what: str, lvm: LatentVariableModel, latents: Mapping[str, Tensor], like: Any, axis: int
) -> Any:
    """`like`, or a placeholder of as many data as the first latent has along `axis`."""
    check_contract(lvm)
    if not isinstance(latents, Mapping) or not all(
        isinstance(value, Tensor) for value in latents.values()
    ):
        raise ContractError(
            f"{what}: latents must be a dict of tensors by name; got a {type(latents).__name__}."
        )
    batch = like
    if like is None:
        batch = _placeholder(lvm, _number_of_data(what, latents, axis))
    check_batch(batch)
    return batch


def _number_of_data(what: str, latents: Mapping[str, Tensor], axis: int) -> int:
    first = next(iter(latents.values()), None)
    if first is not None and first.dim() > axis:
        return first.shape[axis]
    shape = ("(num_data, ...)", "(num_samples, num_data, ...)")[axis]
    raise ContractError(
        f"{what}: no latent has a dimension of the data; give each a value of shape {shape}, or "
        "pass like=."
    )


def _check_event_sizes(lvm: object, sites: Iterable[Any]) -> None:
    for site in sites:
        if site["value"].numel() == 0:
            raise ContractError(
                f"{type(lvm).__name__} takes the size of {site['name']!r} from its batch, so it "
                "cannot run without one: pass like=a batch of data."
            )


def _placeholder(lvm: object, num_data: int) -> Tensor:
    """A batch that has a length and nothing else, on the device of the pair."""
    return torch.empty(num_data, 0, device=device_of(lvm, torch.get_default_device()))
