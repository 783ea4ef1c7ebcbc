"""Draws from the model as a simulator: latents from the prior, data from the likelihood."""

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
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._data_plate import find_data_plate, in_plate, plate_axis
from vilvm.weights._model_runs import (
    check_event_sizes,
    check_means,
    data_of_simulated,
    placeholder,
    run_unobserved,
    simulation_pass,
    without_factors,
)
from vilvm.weights._sites import Sites, family, nesting_of, was_observed
from vilvm.weights._traces import Unobserved
from vilvm.weights._vectorisation import Vectorisation, run_at_samples
from vilvm.weights.checks import as_batch

__all__ = ["SiteDraws", "draws_by_site", "sample"]


class SiteDraws(NamedTuple):
    """The draws of one site of a simulated model.

    Arguments:
        value: the draws, shape (num_samples, ...), or (..., num_samples, ...) along `axis`.
        axis: the dimension of the draws if each draw is one datum; else None.
        observed: whether the model observes the site.
    """

    value: Tensor
    axis: int | None
    observed: bool


def sample(
    lvm: LatentVariableModel,
    num_samples: int,
    *,
    like: Any = None,
    mean: bool = False,
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

    Examples:
        >>> import vilvm
        >>> from vilvm.models.vae import VAE
        >>> vilvm.sample(VAE(data_dim=6, latent_dim=2), 3)["x"].shape
        torch.Size([3, 6])
    """
    draws = draws_by_site(lvm, num_samples, like=like, mean=mean)
    return {name: site.value.movedim(site.axis or 0, 0) for name, site in draws.items()}


def draws_by_site(
    lvm: LatentVariableModel,
    num_samples: int,
    *,
    like: Any = None,
    mean: bool = False,
) -> dict[str, SiteDraws]:
    """The draws of ``sample``, with the dimension of the draws where the data plate has it.

    Arguments:
        lvm: the model and guide; the guide is not run.
        num_samples: independent draws.
        like: a batch, for a model that reads more of it than its length.
        mean: whether observed sites return the mean of their likelihood in place of a draw.

    Returns:
        SiteDraws by site.

    Raises:
        ContractError: as ``sample``.

    Examples:
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.sampling import draws_by_site
        >>> draws_by_site(VAE(data_dim=6, latent_dim=2), 3)["x"].axis
        0
    """
    check_contract(lvm)
    num_samples = check_number("num_samples", num_samples)
    batch = like
    if like is None:
        batch = placeholder(lvm, 1)
    batch = as_batch(lvm, batch)
    with torch.no_grad(), module_parameters(lvm), evaluation_mode(lvm):
        try:
            draws = _simulate(lvm, batch, num_samples, mean)
        except ContractError as error:
            if like is not None or isinstance(error, NotApplicable):
                raise
            raise ContractError(
                f"{error} To simulate a model that reads its batch, pass like=a batch of data."
            ) from None
        if like is None:
            _check_needs_no_batch(lvm, draws.probe, draws.plate)
    if mean:
        check_means(draws.of_observed(), draws.probe)
    if like is not None:
        return draws.by_site(None)
    return draws.by_site(draws.plate)


class _Simulated(NamedTuple):
    """Draws from the model.

    Arguments:
        values: by site, shape (num_samples, ...).
        probe: the sites of a single-sample run.
        plate: the plate over the data, or None.
    """

    values: dict[str, Tensor]
    probe: Sites
    plate: Any

    def of_observed(self) -> dict[str, Tensor]:
        """The draws of the observed sites."""
        return {
            n: value for n, value in self.values.items() if was_observed(self.probe[n])
        }

    def by_site(self, plate: Any) -> dict[str, SiteDraws]:
        """The draws by site; draws of one datum in `plate` take its dimension."""
        return {
            n: _site_draws(value, self.probe[n], plate)
            for n, value in self.values.items()
        }


def _simulate(
    lvm: LatentVariableModel, batch: Any, num_samples: int, mean: bool
) -> _Simulated:
    with not_seeded("model", lvm):
        probe = run_unobserved(lvm, batch)
        _check_no_factor(lvm, probe)
    pass_ = simulation_pass(lvm, nesting_of(probe), mean)
    values = run_at_samples(
        lvm, batch, num_samples, pass_, vectorisation=Vectorisation()
    )["simulated"]
    plate = _data_plate_of_simulated(lvm, batch, probe)
    return _Simulated(values, probe, plate)


def _data_plate_of_simulated(lvm: LatentVariableModel, batch: Any, sites: Sites) -> Any:
    data = list(data_of_simulated(sites).values())
    return find_data_plate(Unobserved()(lvm.model), batch, data)


def _site_draws(value: Tensor, site: Any, plate: Any) -> SiteDraws:
    """The draws of a site; if `plate` holds one datum, they take its dimension."""
    if plate is not None and in_plate(site, plate.name):
        axis = plate_axis(site, plate)
        if value.shape[axis + 1] == 1:
            draws = value.squeeze(axis + 1).movedim(0, axis)
            return SiteDraws(draws, axis, was_observed(site))
    return SiteDraws(value, None, was_observed(site))


def _check_no_factor(lvm: object, sites: Sites) -> None:
    for name, site in sites.items():
        if family(site["fn"]) == "Unit":
            raise NotApplicable(
                f"{type(lvm).__name__} cannot be simulated: its pyro.factor {name!r} changes its "
                "density, but not its draws. Write it as a distribution, or do not simulate data."
            )


def _check_needs_no_batch(lvm: LatentVariableModel, sites: Sites, plate: Any) -> None:
    """Raises ContractError if the model reads more than a length from its batch."""
    check_event_sizes(lvm, sites.values())
    longer = sites
    if plate is None:
        longer = without_factors(run_unobserved(lvm, placeholder(lvm, 2)))
    if not data_of_simulated(sites) or _shapes(sites) != _shapes(longer):
        raise ContractError(
            f"{type(lvm).__name__} reads its batch, so it cannot be simulated without one: pass "
            "like=a batch of data."
        )


def _shapes(sites: Sites) -> dict[str, tuple[int, ...]]:
    return {name: tuple(site["value"].shape) for name, site in sites.items()}
