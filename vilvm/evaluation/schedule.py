"""The schedule of annealed importance sampling: chains, temperatures and base."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from vilvm._runtime.argument_checks import check_number, check_probability

__all__ = ["Schedule", "check_schedule"]

_SLOPE = 4.0  # slope of the sigmoid path, as in Wu et al., 2017


@dataclass(frozen=True)
class Schedule:
    """The settings of annealed importance sampling.

    Arguments:
        num_chains: chains per datum, K.
        num_temperatures: steps from β = 0 to β = 1, T.
        leapfrog: leapfrog steps of a trajectory of Hamiltonian Monte Carlo; one trajectory per
            temperature.
        path: "sigmoid", whose steps are small at both ends, or "linear".
        base: where chains start, "guide" or "prior".
        acceptance: the target acceptance rate of the step-size adaptation.

    Raises:
        ValueError: an option is out of range.

    Reference: On the Quantitative Analysis of Decoder-Based Generative Models, Wu, Burda,
    Salakhutdinov and Grosse, 2017 (sigmoid path).

    Examples:
        >>> from vilvm.evaluation import Schedule
        >>> Schedule(num_temperatures=4, path="linear").betas()
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    num_chains: int = 16
    num_temperatures: int = 200
    leapfrog: int = 5
    path: Literal["sigmoid", "linear"] = "sigmoid"
    base: Literal["guide", "prior"] = "guide"
    acceptance: float = 0.65

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "leapfrog"):
            object.__setattr__(
                self, name, check_number(f"Schedule: {name}", getattr(self, name))
            )
        for name, known in (
            ("path", ("sigmoid", "linear")),
            ("base", ("guide", "prior")),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"Schedule: unknown {name}={value!r}; choose from {list(known)}."
                )
        acceptance = check_probability("Schedule: acceptance", self.acceptance)
        object.__setattr__(self, "acceptance", acceptance)

    def betas(self) -> list[float]:
        """Inverse temperatures β₀ = 0, …, β_T = 1."""
        t = torch.linspace(0, 1, self.num_temperatures + 1, dtype=torch.float64)
        if self.path == "sigmoid":
            t = torch.sigmoid(_SLOPE * (2 * t - 1))
            t = (t - t[0]) / (t[-1] - t[0])
        return t.tolist()


def check_schedule(who: str, schedule: Any) -> Schedule:
    """The given schedule, or the default one for None.

    Arguments:
        who: the function that was called, for the message.
        schedule: a ``Schedule`` or None.

    Raises:
        ValueError: it is neither.

    Examples:
        >>> from vilvm.evaluation.schedule import check_schedule
        >>> check_schedule("ais", None).num_chains
        16
    """
    if not isinstance(schedule, Schedule | None):
        raise ValueError(
            f"{who}: schedule must be a vilvm.evaluation.Schedule; got a "
            f"{type(schedule).__name__}."
        )
    return schedule or Schedule()
