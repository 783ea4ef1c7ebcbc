"""Data of several kinds, whose batches are taken in turn."""

import hashlib
from typing import Any

import torch

from vilvm.data.data import as_data

__all__ = ["Interleaved"]


class Interleaved:
    """Data of several kinds, for ``fit``, whose batches are taken in turn: labelled and unlabelled
    ones, say.

    Every batch is of one source, so the model and the guide see what that source holds and tell
    its kind from it. In an epoch every source is run through once, its batches of ``batch_size``
    data (or all it has) spread evenly among those of the others. The loss of a step is per datum
    of its batch, so with batches of one size an epoch climbs the bound of all data together. To
    have a source k times an epoch, repeat its data k times. Rate and distortion in the records are
    those of the first source.

    Arguments:
        sources: each a ``Data``, or what ``fit`` makes one of.

    Raises:
        ValueError: a source holds no data, or there is none.

    Example:
        >>> import torch, vilvm
        >>> import pyro, pyro.distributions as dist
        >>> def model(batch):
        ...     pi = pyro.param("pi", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        ...     with pyro.plate("data", len(batch["x"])):
        ...         y = pyro.sample("y", dist.Bernoulli(pi), obs=batch.get("y"))
        ...         pyro.sample("x", dist.Normal(y, 1.0), obs=batch["x"])
        >>> def guide(batch):
        ...     logits = pyro.param("slope", torch.tensor(1.0)) * batch["x"]
        ...     if "y" not in batch:
        ...         with pyro.plate("data", len(batch["x"])):
        ...             pyro.sample("y", dist.Bernoulli(logits=logits))
        >>> labelled = {"x": torch.randn(20), "y": torch.ones(20)}
        >>> data = vilvm.Interleaved({"x": torch.randn(80)}, labelled)
        >>> vilvm.fit(vilvm.Pair(model, guide), data, epochs=2, batch_size=10).steps
        20
    """

    def __init__(self, *sources: Any):
        if not sources:
            raise ValueError("Interleaved: give at least one source of data.")
        self.sources = tuple(
            as_data(s, f"Interleaved: source {i}") for i, s in enumerate(sources, start=1)
        )

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def to(self, device: torch.device | str) -> "Interleaved":
        """The same data on `device`."""
        return Interleaved(*(s.to(device) for s in self.sources))

    def protocol(self) -> dict[str, Any]:
        """That of the sources, side by side; see ``Data.protocol``."""
        each = [s.protocol() for s in self.sources]
        words = {key: " and ".join(dict.fromkeys(str(p[key]) for p in each)) for key in each[0]}
        return {**words, "num_data": len(self)}

    def fingerprint(self) -> str:
        """A digest of the sources'."""
        return hashlib.sha256(" ".join(s.fingerprint() for s in self.sources).encode()).hexdigest()
