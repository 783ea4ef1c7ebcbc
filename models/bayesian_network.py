"""A discrete Bayesian network of any structure, with exact inference and two guides.

Generative story. Every node i of a directed acyclic graph has finitely many states and a table of
their probabilities given the states of its parents, so that

    p(z₁, …, z_n) = Π_i p(z_i | z_{pa(i)}).

Some nodes e are observed, the evidence; the others h are latent, and p(e) = Σ_h p(h, e) is a sum
of products, which ``exact_log_evidence`` does node by node, by variable elimination.

Inference. The guide has a perceptron of the evidence for each latent node, and is either

    mean field        q(h | e) = Π_i q(h_i | e),
    autoregressive    q(h | e) = Π_i q(h_i | e, h_{<i}),    in ancestral order.

Mean field cannot represent that causes explain each other away; the autoregressive form can
represent any distribution. Its logits are those of p(h_i | z_{pa(i)}), which ignore all evidence
except the parents, plus the perceptron's output.

The ELBO is below log p(e) by KL(q(h | e) ‖ p(h | e)), which for mean field training cannot reduce
to zero. The latents are marked for parallel enumeration in the guide: under ``TraceEnum_ELBO``
(see ``objective``) their expectation is summed, not sampled, at a cost that grows as the product
of their numbers of states.

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

from vilvm.lvm import ContractError, rebuildable
from vilvm.networks import mlp

__all__ = ["ASIA", "SPRINKLER", "BayesianNetwork", "objective", "tiny"]

Batch = Mapping[str, Tensor]
Network = Mapping[str, tuple[Sequence[str], Any]]

# node: (parents, table). The last dimension of a table is over the states (0 no, 1 yes) of the
# node, the others are over those of its parents.
SPRINKLER: Network = {
    "cloudy": ((), [0.5, 0.5]),
    "sprinkler": (("cloudy",), [[0.5, 0.5], [0.9, 0.1]]),
    "rain": (("cloudy",), [[0.8, 0.2], [0.2, 0.8]]),
    "wet": (
        ("sprinkler", "rain"),
        [[[1.0, 0.0], [0.1, 0.9]], [[0.1, 0.9], [0.01, 0.99]]],
    ),
}
ASIA: Network = {
    "asia": ((), [0.99, 0.01]),
    "smoking": ((), [0.5, 0.5]),
    "tuberculosis": (("asia",), [[0.99, 0.01], [0.95, 0.05]]),
    "cancer": (("smoking",), [[0.99, 0.01], [0.9, 0.1]]),
    "bronchitis": (("smoking",), [[0.7, 0.3], [0.4, 0.6]]),
    "either": (
        ("tuberculosis", "cancer"),
        [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]],
    ),
    "xray": (("either",), [[0.95, 0.05], [0.02, 0.98]]),
    "dyspnoea": (
        ("either", "bronchitis"),
        [[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.1, 0.9]]],
    ),
}


@rebuildable
class BayesianNetwork(nn.Module):
    """A discrete Bayesian network with evidence.

    A batch is a dict of the states of the observed nodes, each of shape (num_data,).

    Arguments:
        network: for each node, its parents and the table p(node | parents), of shape (*states of
            the parents, states of the node).
        evidence: the observed nodes.
        guide: "autoregressive" or "mean_field".
        hidden: width of the guide's perceptrons.
        floor: smallest probability of a state; the others are scaled down. Without it the ELBO of
            a guide with mass on a state of probability zero is −∞.
        learn_tables: whether training also changes the tables.

    Raises:
        ValueError: the graph has a cycle, a table is not a conditional distribution, the evidence
            is unknown or is the whole network, or an option is unknown.

    Examples:
        >>> import torch
        >>> from vilvm.models.bayesian_network import SPRINKLER, BayesianNetwork
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
        known = list(self.evidence)
        if self.autoregressive:
            known += self.latents[: self.latents.index(node)]
        return sum(self.states[n] for n in known)

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
                fn = dist.Categorical(logits=logits)
                drawn[node] = pyro.sample(node, fn, obs=observed.get(node))

    def guide(self, batch: Batch) -> None:
        """q(h | e)."""
        known = self._observed(batch)
        with pyro.plate("data", len(next(iter(known.values())))):
            for node, network in zip(self.latents, self.networks, strict=True):
                logits = network(self._encoded(known))
                if self.autoregressive:
                    parents = tuple(known[p] for p in self.parents[node])
                    logits = logits + self.table(node)[parents].detach()
                fn = dist.Categorical(logits=logits)
                value = pyro.sample(node, fn, infer={"enumerate": "parallel"})
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
                f"BayesianNetwork: {node!r} is not a latent; the latents are "
                f"{', '.join(self.latents)}."
            )
        return dist.Categorical(probs=self._eliminate(batch, node))

    def _eliminate(self, batch: Batch, *kept: str) -> Tensor:
        """Σ p(h, e) over all latents except `kept`, shape (num_data, *states of `kept`)."""
        observed = self._observed(batch)
        axis = {n: i for i, n in enumerate(self.latents, 1)}  # the data are axis 0
        terms: list[Any] = []
        for node in self.parents:
            free = [n for n in (*self.parents[node], node) if n not in observed]
            terms += [self._factor(node, free, observed), [0, *(axis[n] for n in free)]]
        return torch.einsum(*terms, [0, *(axis[n] for n in kept)])

    def _factor(self, node: str, free: list[str], observed: Batch) -> Tensor:
        """p(node | parents) at the evidence, shape (num_data or 1, *states of `free`)."""
        table = self.table(node).double().exp()
        index: list[Tensor] = []
        for n in (*self.parents[node], node):
            if n in observed:
                index.append(observed[n].reshape(-1, *[1] * len(free)))
            else:
                shape = [1] * (1 + len(free))
                shape[1 + free.index(n)] = self.states[n]
                states = torch.arange(self.states[n], device=table.device)
                index.append(states.reshape(shape))
        return table[tuple(index)]

    def _encoded(self, known: Batch) -> Tensor:
        """The known states, one-hot and concatenated."""
        values = torch.broadcast_tensors(*known.values())
        parts = [
            v.unsqueeze(-1) == torch.arange(self.states[n], device=v.device)
            for n, v in zip(known, values, strict=True)
        ]
        return torch.cat(parts, -1).to(self.table(next(iter(self.parents))))

    def _observed(self, batch: Batch) -> dict[str, Tensor]:
        """The evidence in order, checked."""
        got = f"is a {type(batch).__name__}"
        if isinstance(batch, Mapping):
            got = f"holds {', '.join(map(str, batch))}"
        if not isinstance(batch, Mapping) or set(batch) != set(self.evidence):
            raise ContractError(
                "BayesianNetwork: a batch is a dict of states by node, of exactly "
                f"{', '.join(self.evidence)}; this one {got}."
            )
        observed = {n: batch[n].long() for n in self.evidence}
        if is_validation_enabled():  # not at every step, nor under a tracer
            self._check_states(observed)
        return observed

    def _check_states(self, observed: Batch) -> None:
        for n, value in observed.items():
            if bool(((value < 0) | (value >= self.states[n])).any()):
                raise ContractError(
                    f"BayesianNetwork: the states of {n!r} are 0 to {self.states[n] - 1}; the "
                    "batch holds another."
                )


def _checked_tables(network: Network) -> dict[str, Tensor]:
    """The tables in ancestral order, float64, checked."""
    tables: dict[str, Tensor] = {}
    for node in _ancestral_order(network):
        parents, values = network[node]
        table = torch.as_tensor(values, dtype=torch.float64)
        _check_table(node, table, tuple(tables[p].shape[-1] for p in parents))
        tables[node] = table
    return tables


def _ancestral_order(network: Network) -> list[str]:
    graph = {node: parents for node, (parents, _) in network.items()}
    for node, parents in graph.items():
        for parent in parents:
            if parent not in network:
                raise ValueError(
                    f"BayesianNetwork: {node!r} has a parent {parent!r}, which is not a node of "
                    "the network."
                )
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        cycle = " → ".join(error.args[1])
        raise ValueError(
            f"BayesianNetwork: the graph has a cycle, {cycle}; a node cannot be its own ancestor."
        ) from None


def _check_table(node: str, table: Tensor, parents: tuple[int, ...]) -> None:
    """Checks the shape and the rows of a table; `parents` holds their numbers of states."""
    if (
        table.dim() != len(parents) + 1
        or table.shape[:-1] != parents
        or table.shape[-1] < 2
    ):
        wanted = ", ".join([*map(str, parents), "2 or more"])
        raise ValueError(
            f"BayesianNetwork: the table of {node!r} has shape {tuple(table.shape)}; its "
            f"parents need ({wanted})."
        )
    if bool((table < 0).any()) or bool(((table.sum(-1) - 1).abs() > 1e-6).any()):
        raise ValueError(
            f"BayesianNetwork: a row of the table of {node!r} is not a distribution; give "
            "non-negative numbers that sum to one."
        )


def _check_evidence(evidence: tuple[str, ...], tables: Mapping[str, Tensor]) -> None:
    unknown = [n for n in evidence if n not in tables]
    if unknown:
        raise ValueError(
            f"BayesianNetwork: the evidence {unknown[0]!r} is not a node of the network "
            f"({', '.join(tables)})."
        )
    if not evidence or len(set(evidence)) == len(tables):
        raise ValueError(
            "BayesianNetwork: evidence must name at least one node and leave at least one latent."
        )


def objective() -> TraceEnum_ELBO:
    """The ELBO; its expectation over the latent nodes is summed, not sampled.

    Returns:
        An objective for ``vilvm.fit`` or ``pyro.infer.SVI``.

    Examples:
        >>> from vilvm.models.bayesian_network import objective
        >>> type(objective()).__name__
        'TraceEnum_ELBO'
    """
    return TraceEnum_ELBO(max_plate_nesting=1)


def tiny() -> tuple[BayesianNetwork, dict[str, Tensor]]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.bayesian_network import tiny
        >>> lvm, batch = tiny()
    """
    lvm = BayesianNetwork(
        SPRINKLER, evidence=("cloudy", "wet"), hidden=8, learn_tables=True
    )
    return lvm, {
        "cloudy": torch.tensor([0, 1, 0, 1, 0]),
        "wet": torch.tensor([0, 0, 1, 1, 1]),
    }
