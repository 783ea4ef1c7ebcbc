"""A discrete Bayesian network, its structure given as data, with exact inference and two guides.

Generative story. Every node i of a directed graph without cycles has finitely many states and a
table of their probabilities given the states of its parents, so that

    p(z₁, …, z_n) = Π_i p(z_i | z_{pa(i)}).

Some nodes e are observed, the evidence; the others h are latent, and p(e) = Σ_h p(h, e) is a sum
of products, which ``exact_log_evidence`` does node by node, by variable elimination.

Inference. The guide knows the evidence by a perceptron for each latent node, and is either

    mean field        q(h | e) = Π_i q(h_i | e),               which cannot tell how causes explain one another away,
    autoregressive    q(h | e) = Π_i q(h_i | e, h_{<i}),       in ancestral order, as which any distribution can be written;
                      its logits are those of p(h_i | z_{pa(i)}), the answer without evidence, plus what the perceptron adds.

The ELBO falls short of log p(e) by KL(q(h | e) ‖ p(h | e)): for mean field there is a part of it
that no training removes. The latents are marked for parallel enumeration in the guide: under
``TraceEnum_ELBO`` (see ``objective``) their expectation is summed rather than sampled, at a cost
that grows as the product of their numbers of states.

References: Local Computations with Probabilities on Graphical Structures and Their Application to
Expert Systems, S. L. Lauritzen and D. J. Spiegelhalter, 1988 (the network "asia"); Artificial
Intelligence: A Modern Approach, Stuart Russell and Peter Norvig, 1995 ("sprinkler"); An
Introduction to Variational Methods for Graphical Models, Jordan, Ghahramani, Jaakkola and Saul,
1999 (mean field).
"""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from vilvm.lvm import ContractError
from vilvm.networks import mlp

__all__ = ["ASIA", "SPRINKLER", "BayesianNetwork", "objective", "tiny"]

Batch = Mapping[str, Tensor]
Network = Mapping[str, tuple[Sequence[str], Any]]

# node: (parents, table), the last dimension of the table over the states (0 no, 1 yes) and those
# before it over its parents' states.
SPRINKLER: Network = {
    "cloudy": ((), [0.5, 0.5]),
    "sprinkler": (("cloudy",), [[0.5, 0.5], [0.9, 0.1]]),
    "rain": (("cloudy",), [[0.8, 0.2], [0.2, 0.8]]),
    "wet": (("sprinkler", "rain"), [[[1.0, 0.0], [0.1, 0.9]], [[0.1, 0.9], [0.01, 0.99]]]),
}
ASIA: Network = {
    "asia": ((), [0.99, 0.01]),
    "smoking": ((), [0.5, 0.5]),
    "tuberculosis": (("asia",), [[0.99, 0.01], [0.95, 0.05]]),
    "cancer": (("smoking",), [[0.99, 0.01], [0.9, 0.1]]),
    "bronchitis": (("smoking",), [[0.7, 0.3], [0.4, 0.6]]),
    "either": (("tuberculosis", "cancer"), [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]),
    "xray": (("either",), [[0.95, 0.05], [0.02, 0.98]]),
    "dyspnoea": (("either", "bronchitis"), [[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.1, 0.9]]]),
}


class BayesianNetwork(nn.Module):
    """A discrete Bayesian network under evidence. A batch is a dict of states by observed node,
    each of shape (num_data,).

    Arguments:
        network: by node, its parents and the table p(node | parents) of shape (*states of the
            parents, states of the node).
        evidence: the nodes that are observed.
        guide: "autoregressive" or "mean_field".
        hidden: width of the perceptrons of the guide.
        floor: given to every state, the rest scaled down, for a guide that gives mass to a state
            of probability zero has an ELBO of −∞.
        learn_tables: whether training changes the tables, too.

    Raises:
        ValueError: the graph has a cycle, a table is none, the evidence is not part of the network
            or all of it, or an option is unknown.

    Example:
        >>> import torch
        >>> lvm = BayesianNetwork(SPRINKLER, evidence=("wet",))
        >>> round(lvm.exact_posterior({"wet": torch.tensor([1])}, "rain").probs[0, 1].item(), 3)
        0.708
    """

    def __init__(
        self,
        network: Network,
        evidence: Sequence[str],
        guide: Literal["autoregressive", "mean_field"] = "autoregressive",
        *,
        hidden: int = 16,
        floor: float = 1e-6,
        learn_tables: bool = False,
    ):
        super().__init__()
        if guide not in ("autoregressive", "mean_field"):
            raise ValueError(
                f'BayesianNetwork: guide must be "autoregressive" or "mean_field"; got {guide!r}.'
            )
        tables = _checked_tables(network)
        self.parents = {n: tuple(network[n][0]) for n in tables}
        self.states = {n: t.shape[-1] for n, t in tables.items()}
        self.evidence = tuple(evidence)
        self.latents = tuple(n for n in tables if n not in self.evidence)
        self.autoregressive = guide == "autoregressive"
        _check_evidence(self.evidence, tables)
        if not 0 < floor * max(self.states.values()) < 1:
            raise ValueError(
                "BayesianNetwork: floor must be above 0 and leave room for the tables; got "
                f"{floor}."
            )
        for i, table in enumerate(tables.values()):
            logits = ((1 - table.shape[-1] * floor) * table + floor).log().float()
            if learn_tables:
                self.register_parameter(f"logits_{i}", nn.Parameter(logits))
            else:
                self.register_buffer(f"logits_{i}", logits)
        self.networks = nn.ModuleList(
            mlp(self._guide_inputs(n), (hidden,), self.states[n]) for n in self.latents
        )

    def _guide_inputs(self, node: str) -> int:
        earlier = self.latents[: self.latents.index(node)] if self.autoregressive else ()
        return sum(self.states[n] for n in (*self.evidence, *earlier))

    def table(self, node: str) -> Tensor:
        """log p(node | parents), shape (*states of the parents, states of the node)."""
        return getattr(self, f"logits_{list(self.parents).index(node)}").log_softmax(-1)

    def model(self, batch: Batch) -> None:
        """p(e | h) p(h)."""
        pyro.module("bayesian_network", self)
        observed = self._observed(batch)
        drawn: dict[str, Tensor] = {}
        with pyro.plate("data", len(next(iter(observed.values())))):
            for node, parents in self.parents.items():
                logits = self.table(node)[tuple(drawn[p] for p in parents)]
                drawn[node] = pyro.sample(
                    node, dist.Categorical(logits=logits), obs=observed.get(node)
                )

    def guide(self, batch: Batch) -> None:
        """q(h | e)."""
        known = self._observed(batch)
        with pyro.plate("data", len(next(iter(known.values())))):
            for node, network in zip(self.latents, self.networks, strict=True):
                logits = network(self._encoded(known))
                if self.autoregressive:
                    logits = (
                        logits
                        + self.table(node)[tuple(known[p] for p in self.parents[node])].detach()
                    )
                value = pyro.sample(
                    node, dist.Categorical(logits=logits), infer={"enumerate": "parallel"}
                )
                if self.autoregressive:
                    known[node] = value

    def exact_log_evidence(self, batch: Batch) -> Tensor:
        """log p(e), exact, in nats, for every datum of the batch: shape (num_data,), float64."""
        return self._eliminate(batch).log()

    def exact_posterior(self, batch: Batch, node: str) -> dist.Categorical:
        """p(node | e), exact, of a latent node, for every datum of the batch.

        Raises:
            ValueError: the node is not a latent.
        """
        if node not in self.latents:
            raise ValueError(
                f"BayesianNetwork: {node!r} is no latent; there are {', '.join(self.latents)}."
            )
        return dist.Categorical(probs=self._eliminate(batch, node))

    def _eliminate(self, batch: Batch, *kept: str) -> Tensor:
        """Σ p(h, e) over all latents but those kept, shape (num_data, *states of the kept ones)."""
        observed = self._observed(batch)
        axis = {n: i for i, n in enumerate(self.latents, 1)}  # the data are axis 0
        terms: list[Any] = []
        for node in self.parents:
            free = [n for n in (*self.parents[node], node) if n not in observed]
            terms += [self._factor(node, free, observed), [0, *(axis[n] for n in free)]]
        return torch.einsum(*terms, [0, *(axis[n] for n in kept)])

    def _factor(self, node: str, free: list[str], observed: Batch) -> Tensor:
        """p(node | parents) with the evidence put in: shape (num_data or 1, *states of what is
        free of it).
        """
        index, table = [], self.table(node).double().exp()
        for n in (*self.parents[node], node):
            if n in observed:
                index.append(observed[n].reshape(-1, *[1] * len(free)))
            else:
                shape = [1, *(self.states[n] if m == n else 1 for m in free)]
                index.append(torch.arange(self.states[n], device=table.device).reshape(shape))
        return table[tuple(index)]

    def _encoded(self, known: Batch) -> Tensor:
        """The states of what is known, one-hot and side by side."""
        values = torch.broadcast_tensors(*known.values())
        parts = [
            v.unsqueeze(-1) == torch.arange(self.states[n], device=v.device)
            for n, v in zip(known, values, strict=True)
        ]
        return torch.cat(parts, -1).to(self.table(next(iter(self.parents))))

    def _observed(self, batch: Batch) -> dict[str, Tensor]:
        """The evidence in order, checked."""
        if not isinstance(batch, Mapping) or set(batch) != set(self.evidence):
            got = (
                f"holds {', '.join(map(str, batch))}"
                if isinstance(batch, Mapping)
                else f"is a {type(batch).__name__}"
            )
            raise ContractError(
                "BayesianNetwork: a batch is a dict of states by node, of exactly "
                f"{', '.join(self.evidence)}; this one {got}."
            )
        observed = {n: batch[n].long() for n in self.evidence}
        # not at every step, nor under a tracer
        for n, value in observed.items() if is_validation_enabled() else ():
            if bool(((value < 0) | (value >= self.states[n])).any()):
                raise ContractError(
                    f"BayesianNetwork: the states of {n!r} are 0 to {self.states[n] - 1}; the "
                    "batch holds another."
                )
        return observed


def _checked_tables(network: Network) -> dict[str, Tensor]:
    """The tables in ancestral order, float64, each held to its parents'."""
    unknown = [(n, p) for n, (parents, _) in network.items() for p in parents if p not in network]
    if unknown:
        raise ValueError(
            f"BayesianNetwork: {unknown[0][0]!r} has a parent {unknown[0][1]!r}, which is no node "
            "of the network."
        )
    try:
        order = list(
            TopologicalSorter({n: parents for n, (parents, _) in network.items()}).static_order()
        )
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise ValueError(
            f"BayesianNetwork: the graph has a cycle, {circle}; a node cannot be its own ancestor."
        ) from None
    tables: dict[str, Tensor] = {}
    for node in order:
        parents, values = network[node]
        table = torch.as_tensor(values, dtype=torch.float64)
        expected = tuple(tables[p].shape[-1] for p in parents)
        if table.dim() != len(parents) + 1 or table.shape[:-1] != expected or table.shape[-1] < 2:
            wanted = ", ".join([*map(str, expected), "2 or more"])
            raise ValueError(
                f"BayesianNetwork: the table of {node!r} has shape {tuple(table.shape)}; its "
                f"parents ask for ({wanted})."
            )
        if bool((table < 0).any()) or bool(((table.sum(-1) - 1).abs() > 1e-6).any()):
            raise ValueError(
                f"BayesianNetwork: a row of the table of {node!r} is not a distribution: numbers "
                "from 0 that sum to one."
            )
        tables[node] = table
    return tables


def _check_evidence(evidence: tuple[str, ...], tables: Mapping[str, Tensor]) -> None:
    unknown = [n for n in evidence if n not in tables]
    if unknown:
        raise ValueError(
            f"BayesianNetwork: the evidence {unknown[0]!r} is no node of the network "
            f"({', '.join(tables)})."
        )
    if not evidence or len(set(evidence)) == len(tables):
        raise ValueError(
            "BayesianNetwork: evidence must name at least one node and leave at least one latent."
        )


def objective() -> TraceEnum_ELBO:
    """The ELBO with its expectation over the latent nodes summed rather than sampled."""
    return TraceEnum_ELBO(max_plate_nesting=1)


def tiny() -> tuple[BayesianNetwork, dict[str, Tensor]]:
    """A small instance and a small batch, for the tests."""
    lvm = BayesianNetwork(SPRINKLER, evidence=("cloudy", "wet"), hidden=8, learn_tables=True)
    return lvm, {"cloudy": torch.tensor([0, 1, 0, 1, 0]), "wet": torch.tensor([0, 0, 1, 1, 1])}
