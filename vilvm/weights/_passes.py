"""A pass through a pair: its computation and its inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._compile import shapes
from vilvm.data.tensors import tensors_of

__all__ = [
    "DRAWN",
    "BoundPass",
    "Pass",
    "Values",
    "concatenate",
    "error_text",
    "leaves",
]

DRAWN = "drawn"  # the kind of values that reproduce a run

# tensors of shape (num_samples, ...), by kind and site
Values = dict[str, dict[str, Tensor]]


class Pass(NamedTuple):
    """A run of the model, the guide or both.

    Arguments:
        run: called with a batch, given values by site, shape (num_samples, ...), and the number of
            samples; None stands for a single-sample run, without a plate over samples, whose
            results have one sample.
        name: describes the computation; passes of one name and one pair share one strategy.
    """

    run: Callable[[Any, Mapping[str, Tensor], int | None], Values]
    name: str


@dataclass(frozen=True)
class BoundPass:
    """A pass with its inputs: the pair, the batch and the given values.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        pass_: the pass.
        given: values by site, shape (num_samples, ...), to which sites are set.
    """

    lvm: Any
    batch: Any
    pass_: Pass
    given: dict[str, Tensor]

    @cached_property
    def key(self) -> Any:
        """Equal for passes of one name whose inputs have the same shapes without the samples."""
        given = tuple(
            (name, tuple(value.shape[1:])) for name, value in self.given.items()
        )
        return self.pass_.name, shapes(tensors_of(self.batch)), given

    @cached_property
    def device(self) -> torch.device:
        """The device of the batch."""
        for tensor in tensors_of(self.batch):
            return tensor.device
        return torch.device("cpu")

    def at(
        self, num_samples: int | None, given: Mapping[str, Tensor] | None = None
    ) -> Values:
        """The values of one run, at `given` or by default at its own given values."""
        if given is None:
            given = self.given
        return self.pass_.run(self.batch, given, num_samples)

    def single(self, given: Mapping[str, Tensor] | None = None) -> Values:
        """The values of a single-sample run."""
        return self.at(None, given)

    def given_of(self, samples: slice) -> dict[str, Tensor]:
        """The given values of some samples."""
        return {name: value[samples] for name, value in self.given.items()}

    def of(self, samples: slice) -> "BoundPass":
        """The pass on the given values of some samples."""
        return BoundPass(self.lvm, self.batch, self.pass_, self.given_of(samples))


def leaves(values: Values) -> list[tuple[str, str, Tensor]]:
    """Every tensor, with its kind and site."""
    return [
        (kind, site, value)
        for kind, sites in values.items()
        for site, value in sites.items()
    ]


def concatenate(parts: list[Values]) -> Values:
    """The samples of several runs."""
    return {
        kind: {site: torch.cat([part[kind][site] for part in parts]) for site in sites}
        for kind, sites in parts[0].items()
    }


def error_text(error: BaseException) -> str:
    """The message of an error on one line, or its type, without a final full stop."""
    text = " ".join(str(error).split())
    return (text[:300] or type(error).__name__).rstrip(".")
