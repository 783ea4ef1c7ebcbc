"""Measures a trained row on its test data, in nats per datum."""

import time
from typing import Any

import vilvm
from vilvm.data.datasets import Dataset
from vilvm.diagnostics import active_units, pareto_k
from vilvm.evaluation import Schedule, ais

__all__ = ["measure"]

_AIS = Schedule(num_chains=16, num_temperatures=200, leapfrog=3)


def measure(
    lvm: vilvm.LatentVariableModel,
    data: Dataset,
    *,
    num_samples: int = 5000,
    num_images: int = 500,
    schedule: Schedule = _AIS,
) -> dict[str, Any]:
    """Bounds of all test data, and what is too costly for all on evenly spaced ones.

    Arguments:
        lvm: the trained pair.
        data: its data.
        num_samples: importance samples for each datum.
        num_images: test data for AIS and Pareto k̂.
        schedule: of AIS.

    Returns:
        Numbers by name, for JSON.
    """
    began = time.perf_counter()
    # drawn once, so that all numbers are of the same binary images
    test = data.test.fixed()
    spaced = slice(None, None, -(-len(test) // num_images))
    few = test.subset(spaced)
    evaluation = vilvm.evaluate(lvm, test, num_samples=num_samples)
    tails = pareto_k(lvm, few)
    return {
        **evaluation.to_dict(),
        "ais": ais(lvm, few, schedule).to_dict(),
        "iwae_of_ais_images": evaluation.bounds["iwae"].values[spaced].mean().item(),
        "active_units": sum(int(u.sum()) for u in active_units(lvm, test).values()),
        "pareto_k": {"num_data": len(few), "share_above": tails.share},
        "measuring_seconds": time.perf_counter() - began,
    }
