"""A pass through a pair: what it computes, and on what it is run."""

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

DRAWN = "drawn"  # the kind of values that a run takes to be repeated

# tensors of shape (num_samples, ...), by kind and site
Values = dict[str, dict[str, Tensor]]


class Pass(NamedTuple):
    """A pass through one or both halves of a pair.

    Arguments:
        run: called with a batch, given values by site, shape (num_samples, ...), and the number of
            samples; None stands for a single-sample run, without a plate over samples, whose
            results have one sample.
        name: what it computes; passes of one name and one pair are vectorised in the same way.
    """

    run: Callable[[Any, Mapping[str, Tensor], int | None], Values]
    name: str


@dataclass(frozen=True)
class BoundPass:
    """A pass with the pair, the batch and the given values that it is run on.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        one: the pass.
        given: values by site, shape (num_samples, ...), to which sites are set.
    """

    lvm: Any
    batch: Any
    one: Pass
    given: dict[str, Tensor]

    @cached_property
    def key(self) -> Any:
        """Equal for passes of one name whose inputs have the same shapes, but for the samples."""
        given = tuple(
            (name, tuple(value.shape[1:])) for name, value in self.given.items()
        )
        return self.one.name, shapes(tensors_of(self.batch)), given

    @cached_property
    def device(self) -> torch.device:
        """The device of the batch."""
        for tensor in tensors_of(self.batch):
            return tensor.device
        return torch.device("cpu")

    def at(
        self, num_samples: int | None, given: Mapping[str, Tensor] | None = None
    ) -> Values:
        """The values of one run, at other given values if there are any."""
        if given is None:
            given = self.given
        return self.one.run(self.batch, given, num_samples)

    def single(self, given: Mapping[str, Tensor] | None = None) -> Values:
        """The values of a single-sample run."""
        return self.at(None, given)

    def given_of(self, samples: slice) -> dict[str, Tensor]:
        """The given values of some samples."""
        return {name: value[samples] for name, value in self.given.items()}

    def of(self, samples: slice) -> "BoundPass":
        """The pass on the given values of some samples."""
        return BoundPass(self.lvm, self.batch, self.one, self.given_of(samples))


def leaves(values: Values) -> list[tuple[str, str, Tensor]]:
    """Every tensor, after its kind and site."""
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
    """The message of an error on one line, or its type, without a final stop."""
    text = " ".join(str(error).split())
    return (text[:300] or type(error).__name__).rstrip(".")
