"""Means and draws of the observed sites at given latents, and their values in a batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    check_contract,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._conditioning import at_draw
from vilvm.weights._contract import enumerable
from vilvm.weights._enumeration import check_drawable
from vilvm.weights._model_runs import (
    check_event_sizes,
    check_means,
    data_of_simulated,
    latents_of_simulated,
    means_of,
    placeholder,
    run_unobserved,
    simulation_pass,
    without_factors,
)
from vilvm.weights._sites import (
    Sites,
    deterministic_of,
    family,
    nesting_of,
    observed_of,
    sites_of,
    to_own_dims,
    was_observed,
)
from vilvm.weights._traces import Unobserved, run
from vilvm.weights._vectorisation import Vectorisation, run_at_samples
from vilvm.weights.checks import as_batch

__all__ = ["observed", "predict", "predicted_means", "replicate"]


def predict(
    lvm: LatentVariableModel, latents: Mapping[str, Tensor], *, like: Any = None
) -> dict[str, Tensor]:
    """E[x | z]: the means of the observed sites given latents, a decoder for any model.

    Arguments:
        lvm: the model and guide; the guide is not run.
        latents: every latent by name, shape (num_data, ...); (...) for a latent that the data
            share, which needs `like`. Values of deterministic sites are ignored.
        like: a batch of num_data data, for a model that reads more of its batch than the length.

    Returns:
        Every observed site by name, shape (num_data, ...). The values of ``pyro.deterministic``
        follow, without those that depend on an observed site.

    Raises:
        ContractError: a latent has no value, the model cannot run without a batch, or a likelihood
            has no mean.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import predict
        >>> predict(VAE(data_dim=6, latent_dim=2), {"z": torch.zeros(4, 2)})["x"].shape
        torch.Size([4, 6])
    """
    means, derived = _at_latents("predict", lvm, latents, like)
    if derived:  # once more, because a draw of an observed site differs
        again = _at_latents("predict", lvm, latents, like)[1]
        derived = {
            n: v
            for n, v in derived.items()
            if torch.equal(v.nan_to_num(), again[n].nan_to_num())
        }
    return means | derived


def predicted_means(
    lvm: LatentVariableModel, latents: Mapping[str, Tensor], *, like: Any = None
) -> dict[str, Tensor]:
    """The means of ``predict``, without deterministic values.

    Arguments:
        lvm: the model and guide; the guide is not run.
        latents: every latent by name, shape (num_data, ...).
        like: a batch of num_data data, for a model that reads more of its batch than the length.

    Returns:
        Every observed site by name, shape (num_data, ...).

    Raises:
        ContractError: as ``predict``.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.prediction import predicted_means
        >>> predicted_means(VAE(data_dim=6, latent_dim=2), {"z": torch.zeros(4, 2)})["x"].shape
        torch.Size([4, 6])
    """
    return _at_latents("predict", lvm, latents, like)[0]


def _at_latents(
    what: str, lvm: LatentVariableModel, latents: Mapping[str, Tensor], like: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The means of the observed sites, and the deterministic values."""
    batch = _batch_around(what, lvm, latents, like, 0)
    with (
        torch.no_grad(),
        module_parameters(lvm),
        evaluation_mode(lvm),
        at_draw({name: value[None] for name, value in latents.items()}),
    ):
        trace = run(Unobserved()(lvm.model), "model", batch)
    sites = without_factors(sites_of(trace))
    missing = [name for name in latents_of_simulated(sites) if name not in latents]
    if missing:
        raise ContractError(
            f"predict: no value was given for the latent {missing[0]!r}; got {sorted(latents)}."
        )
    if like is None:
        check_event_sizes(lvm, sites.values())
    means = means_of(data_of_simulated(sites))
    check_means(means, sites)
    return means, {n: site["value"] for n, site in deterministic_of(trace).items()}


def replicate(
    lvm: LatentVariableModel,
    latents: Mapping[str, Tensor],
    *,
    like: Any = None,
    mean: bool = False,
) -> dict[str, Tensor]:
    """Draws from p(x | z) given draws of the latents.

    With draws of ``posterior``, these are replicated data, to be compared with the data. An
    enumerated latent needs no value and is drawn from its prior.

    Arguments:
        lvm: the model and guide; the guide is not run.
        latents: draws by name, as ``posterior`` returns them: shape (num_samples, num_data, ...);
            (num_samples, ...) for a latent that the data share, which needs `like`. Values of
            deterministic sites are ignored.
        like: a batch of num_data data, for a model that reads more of it than its length.
        mean: whether observed sites return E[x | z], the mean of their likelihood, in place of a
            draw.

    Returns:
        Every observed site by name, shape (num_samples, num_data, ...).

    Raises:
        ContractError: a latent has no value or one of another shape, or the model cannot run
            without a batch; or a likelihood has no mean.

    Examples:
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
            probe = run_unobserved(lvm, batch)
        _check_all_given(latents, probe)
        if like is None:
            check_event_sizes(lvm, probe.values())
        nesting = nesting_of(probe)
        if any(enumerable(site) and n not in latents for n, site in probe.items()):
            check_drawable("replicate", lvm, batch, latents, nesting)
        pass_ = simulation_pass(lvm, nesting, mean)
        values = run_at_samples(
            lvm, batch, num_samples, pass_, latents, vectorisation=Vectorisation()
        )["simulated"]
    found = {n: value for n, value in values.items() if was_observed(probe[n])}
    if mean:
        check_means(found, probe)
    return found


def _only_number_of_draws(latents: Mapping[str, Tensor]) -> int:
    numbers = {value.shape[0] if value.dim() else 0 for value in latents.values()}
    if len(numbers) != 1:
        raise ContractError(
            "replicate: the latents must have the same number of draws in dimension 0; they have "
            f"{sorted(numbers)}."
        )
    return numbers.pop()


def _check_all_given(latents: Mapping[str, Tensor], sites: Sites) -> None:
    for name, site in sites.items():
        needs_no_value = (
            was_observed(site) or enumerable(site) or family(site["fn"]) == "Unit"
        )
        if name not in latents and not needs_no_value:
            raise ContractError(
                f"replicate: no draws were given of the latent {name!r}; got {sorted(latents)}."
            )


def observed(lvm: LatentVariableModel, batch: Any) -> dict[str, Tensor]:
    """The values that the model observes in a batch, in the shapes of ``replicate``.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.

    Returns:
        Every observed site by name, shape (num_data, ...), plates before the event.

    Raises:
        ContractError: the pair cannot run on this batch.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import observed
        >>> observed(VAE(data_dim=6, latent_dim=2), torch.ones(4, 6))["x"].sum()
        tensor(24.)
    """
    check_contract(lvm)
    batch = as_batch(lvm, batch)
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        sites = sites_of(run(lvm.model, "model", batch, run(lvm.guide, "guide", batch)))
    nesting, values = nesting_of(sites), {}
    for name, site in without_factors(observed_of(sites)).items():
        value = site["value"].expand(site["fn"].shape()).unsqueeze(0)
        values[name] = to_own_dims(value, site, 1, nesting)[0]
    return values


def _batch_around(
    what: str,
    lvm: LatentVariableModel,
    latents: Mapping[str, Tensor],
    like: Any,
    axis: int,
) -> Any:
    """`like`, or a placeholder with as many data as the first latent has along `axis`."""
    check_contract(lvm)
    if not isinstance(latents, Mapping) or not all(
        isinstance(value, Tensor) for value in latents.values()
    ):
        raise ContractError(
            f"{what}: latents must be a dict of tensors by name; got a {type(latents).__name__}."
        )
    batch = like
    if like is None:
        batch = placeholder(lvm, _number_of_data(what, latents, axis))
    return as_batch(lvm, batch)


def _number_of_data(what: str, latents: Mapping[str, Tensor], axis: int) -> int:
    first = next(iter(latents.values()), None)
    if first is not None and first.dim() > axis:
        return first.shape[axis]
    shape = ("(num_data, ...)", "(num_samples, num_data, ...)")[axis]
    raise ContractError(
        f"{what}: no latent has a dimension of the data; give each a value of shape {shape}, or "
        "pass like=."
    )
