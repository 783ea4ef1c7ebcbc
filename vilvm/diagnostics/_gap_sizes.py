"""How much the gaps compute, and how much of it a time budget allows."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws, seconds_of
from vilvm.evaluation import Schedule
from vilvm.evaluation.hmc import start
from vilvm.guides import fit_local_guide
from vilvm.training.step import NonFiniteLossError
from vilvm.weights.log_joint import LogJoint
from vilvm.weights.prepared import Prepared

__all__ = ["NO_FIT", "Sizes", "affordable_sizes"]

NO_FIT = "the best guide's fit"  # in what was cut

_PILOT = 100  # draws of the timed evaluation, and the fewest of an ELBO
# a shorter fit or annealing is not worth its time
_LEAST_STEPS, _LEAST_TEMPERATURES = 50, 20
_PASS = 8_000  # chains in a pass of annealing


class Sizes(NamedTuple):
    """How much the gaps compute.

    Arguments:
        num_samples: draws of an ELBO.
        steps: steps of the best guide's fit; 0 for none.
        schedule: how chains are annealed; None for no annealing.
    """

    num_samples: int
    steps: int
    schedule: Schedule | None

    def shorter_than(self, whole: "Sizes") -> str:
        """Describes what is missing compared with `whole`."""
        cuts = []
        if self.num_samples < whole.num_samples:
            cuts.append(f"{self.num_samples} of {whole.num_samples} draws")
        if self.steps == 0 < whole.steps:
            cuts.append(NO_FIT)
        elif self.steps < whole.steps:
            cuts.append(f"{self.steps} of {whole.steps} steps of the best guide's fit")
        if self.schedule is None:
            cuts.append("annealing")
        elif whole.schedule is not None and self.schedule != whole.schedule:
            cuts.append(_shorter_annealing(self.schedule, whole.schedule))
        return ", ".join(cuts)


def _shorter_annealing(made: Schedule, whole: Schedule) -> str:
    return (
        f"annealing by {made.num_chains} of {whole.num_chains} chains, "
        f"{made.num_temperatures} of {whole.num_temperatures} temperatures and "
        f"{made.leapfrog} of {whole.leapfrog} leapfrog steps"
    )


def affordable_sizes(
    prepared: Prepared, wanted: Sizes, time: TimeBudget, evaluate: Callable[[int], Any]
) -> Sizes:
    """Sizes that take nine tenths of the time, about half of it for chains.

    Arguments:
        prepared: the pair and its data.
        wanted: the sizes without a time limit, with a schedule.
        time: the time budget.
        evaluate: evaluates the ELBO with a number of draws.
    """
    assert wanted.schedule is not None
    num_samples = affordable_draws(
        evaluate, _PILOT, wanted.num_samples, time.left * 0.15
    )
    joint = LogJoint(prepared.lvm, prepared.batches[0].x, "guide")
    few = joint.draw(4)
    start(joint, few)
    gradient = min(seconds_of(lambda: start(joint, few)) for _ in range(2))
    steps = _affordable_steps(prepared, wanted.steps, time, gradient)
    share = 0.45
    if steps == 0:
        share = 0.7  # annealing alone can detect what the guide misses
    schedule = _affordable_schedule(
        prepared, wanted.schedule, time.left * share, gradient
    )
    return Sizes(num_samples, steps, schedule)


def _affordable_steps(
    prepared: Prepared, wanted: int, time: TimeBudget, gradient: float
) -> int:
    """Affordable steps of the best guide's fit, by timed runs; 0 if they are too few."""
    num_parts = len(prepared.batches)
    steps = int(min(wanted, time.affords(2 * gradient, 0.3) / num_parts))
    if steps < _LEAST_STEPS:
        return 0
    batch = prepared.batches[0].x

    def fit(count: int) -> None:
        fit_local_guide(prepared.lvm, batch, steps=count, seed=prepared.seed)

    # A step takes longer than a gradient if samples run one by one.
    try:
        steps = affordable_draws(fit, 2, steps, time.left * 0.25 / num_parts)
    except NonFiniteLossError:
        return 0
    if steps < _LEAST_STEPS:
        return 0
    return steps


def _affordable_schedule(
    prepared: Prepared, whole: Schedule, seconds: float, gradient: float
) -> Schedule | None:
    """The longest annealing from both bases that fits into `seconds`, or None.

    Chains and temperatures are halved until it fits.
    """
    made = whole
    while min(gradient, seconds) * _gradients(made) > seconds or (
        _gradient_of_all(prepared, made.num_chains) * _gradients(made) > seconds
    ):
        if made.num_temperatures <= _LEAST_TEMPERATURES and made.leapfrog <= 2:
            return None
        made = _shorter(made)
    return made


def _shorter(schedule: Schedule) -> Schedule:
    """Half the chains and temperatures, and one leapfrog step fewer, down to their least."""

    def reduced(size: int, smaller: int, least: int) -> int:
        return min(size, max(smaller, least))

    chains, temperatures = schedule.num_chains, schedule.num_temperatures
    return replace(
        schedule,
        num_chains=reduced(chains, chains // 2, 16),
        num_temperatures=reduced(temperatures, temperatures // 2, _LEAST_TEMPERATURES),
        leapfrog=reduced(schedule.leapfrog, schedule.leapfrog - 1, 2),
    )


def _gradient_of_all(prepared: Prepared, num_chains: int) -> float:
    """Seconds that a gradient of all chains and data takes, timed on the data of one pass."""
    data, few = prepared.data, max(1, _PASS // num_chains)
    batch = data
    if data.divisible and few < len(data):
        batch = data.subset(slice(0, few))
    joint = LogJoint(prepared.lvm, batch.x, "guide")
    u = joint.draw(num_chains)
    passes = 1
    if joint.layout.local:
        passes = math.ceil(len(data) * num_chains / _PASS)
    return seconds_of(lambda: start(joint, u)) * passes


def _gradients(schedule: Schedule) -> int:
    """The number of gradients of a batch from both bases, in the chains and the pilot.

    The pilot makes 180 transitions, or as many as there are temperatures.
    """
    pilot = max(180, schedule.num_temperatures + 30)
    return 2 * schedule.leapfrog * (pilot + schedule.num_temperatures)
