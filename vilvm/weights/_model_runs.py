"""Runs of the model with nothing observed."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vilvm.lvm import ContractError, LatentVariableModel, device_of
from vilvm.weights._conditioning import at_samples
from vilvm.weights._passes import Pass, Values
from vilvm.weights._sites import (
    Sites,
    family,
    own_densities,
    own_values,
    sites_of,
    was_observed,
)
from vilvm.weights._traces import Unobserved, run

__all__ = [
    "check_event_sizes",
    "check_means",
    "data_of_simulated",
    "latents_of_simulated",
    "mean_or_value",
    "means_of",
    "placeholder",
    "run_unobserved",
    "simulation_pass",
    "without_factors",
]


def simulation_pass(lvm: LatentVariableModel, nesting: int, mean: bool) -> Pass:
    """A run of the model with nothing observed.

    With `mean`, observed sites give the mean of their likelihood.
    """

    def simulate(
        batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        samples, size = None, num_samples or 1
        if num_samples is not None:
            samples = num_samples, -1 - nesting
        with at_samples(given, num_samples, nesting):
            sites = without_factors(run_unobserved(lvm, batch, samples))
        simulated, drawn = sites, sites
        if mean:
            drawn = latents_of_simulated(sites)
            means = means_of(data_of_simulated(sites))
            simulated = sites | {
                n: {**sites[n], "value": mean} for n, mean in means.items()
            }
        random = {
            name: site for name, site in drawn.items() if family(site["fn"]) != "Delta"
        }
        return {
            "simulated": own_values(simulated, size, nesting),
            "drawn": own_values(random, size, nesting),
            "densities": own_densities("model", drawn, size, nesting),
        }

    return Pass(simulate, f"simulation, mean={mean}")


def data_of_simulated(sites: Sites) -> Sites:
    """The sites that the model itself observes."""
    return {name: site for name, site in sites.items() if was_observed(site)}


def latents_of_simulated(sites: Sites) -> Sites:
    """The sites that the model itself does not observe."""
    return {name: site for name, site in sites.items() if not was_observed(site)}


def means_of(sites: Sites) -> dict[str, Tensor]:
    """The mean of every site's distribution."""
    return {name: site["fn"].mean for name, site in sites.items()}


def run_unobserved(
    lvm: LatentVariableModel, batch: Any, samples: tuple[int, int] | None = None
) -> Sites:
    """The model's sites with nothing observed, factors among them."""
    return sites_of(run(Unobserved()(lvm.model), "model", batch, samples=samples))


def without_factors(sites: Sites) -> Sites:
    """The sites without ``pyro.factor``."""
    return {n: site for n, site in sites.items() if family(site["fn"]) != "Unit"}


def mean_or_value(site: Any) -> Tensor:
    """The mean of a site's distribution; its value if the mean has no closed form."""
    try:
        return site["fn"].mean.expand(site["value"].shape)
    except NotImplementedError:
        return site["value"]


def check_means(means: Mapping[str, Tensor], sites: Sites) -> None:
    """Raises ContractError if a mean is NaN, as for a Categorical."""
    for name, mean in means.items():
        if bool(mean.isnan().any()):
            raise ContractError(
                f"Site {name!r} is {family(sites[name]['fn'])}, which has no mean; use draws "
                "(sample, posterior)."
            )


def check_event_sizes(lvm: object, sites: Iterable[Any]) -> None:
    """Raises ContractError if a site is empty, so that its size comes from the batch."""
    for site in sites:
        if site["value"].numel() == 0:
            raise ContractError(
                f"{type(lvm).__name__} takes the size of {site['name']!r} from its batch, so it "
                "cannot run without one: pass like=a batch of data."
            )


def placeholder(lvm: object, num_data: int) -> Tensor:
    """A batch with a length and no numbers, shape (num_data, 0), on the device of the pair."""
    return torch.empty(num_data, 0, device=device_of(lvm, torch.get_default_device()))
