"""Data from several sources with interleaved batches."""

import hashlib
from typing import Any

import torch

from vilvm.data.data import as_data

__all__ = ["Interleaved"]


class Interleaved:
    """Data from several sources for ``fit``, such as labelled and unlabelled data.

    Every batch comes from one source, and the model and guide see that source's tensors. An epoch
    runs through every source once; the batches of a source, of ``batch_size`` data (or all of its
    data), are spread evenly among the batches of the others. The loss of a step is per datum of
    its batch, so with batches of equal size an epoch maximises the bound of all data together. To
    visit a source k times an epoch, repeat its data k times. The recorded rate and distortion are
    those of the first source.

    Arguments:
        sources: each a ``Data``, a tensor, or a tuple or dict of tensors.

    Raises:
        ValueError: there is no source, or a source holds no data.

    Examples:
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
            as_data(s, f"Interleaved: source {i}")
            for i, s in enumerate(sources, start=1)
        )

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def to(self, device: torch.device | str) -> "Interleaved":
        """The same data on `device`."""
        return Interleaved(*(s.to(device) for s in self.sources))

    def protocol(self) -> dict[str, Any]:
        """The protocols of the sources, joined; see ``Data.protocol``."""
        each = [s.protocol() for s in self.sources]
        joined = {
            key: " and ".join(dict.fromkeys(str(p[key]) for p in each))
            for key in each[0]
        }
        return {**joined, "num_data": len(self)}

    def fingerprint(self) -> str:
        """A digest of the sources' fingerprints."""
        fingerprints = " ".join(s.fingerprint() for s in self.sources)
        return hashlib.sha256(fingerprints.encode()).hexdigest()
