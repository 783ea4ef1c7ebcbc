"""A model's own data, beside the latents they came from: what calibration is measured on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm.data import Data, seeded, tensors_of
from vilvm.lvm import ContractError, LatentVariableModel, Pair, check_contract, device_of, evaluation_mode, fixed_beside
from vilvm.weights import Layout, layout, log_weights, sample
from vilvm.weights.simulated import put_in
from vilvm.wrapped import Wrapped

__all__ = [
    "LIKELIHOOD",
    "Rebuild",
    "Simulated",
    "batches",
    "check_amortised",
    "components",
    "names_of",
    "quantities",
    "simulating",
    "simulations",
]

Rebuild = Callable[[dict[str, Tensor]], Any]
LIKELIHOOD = "log p(x | z)"
_DATA = 10  # of a batch with latents that all share, the data whose own latents are looked at


class Simulated(NamedTuple):
    """A batch of the model's own data, and the latents they came from.

    Arguments:
        batch: what model and guide are called with.
        latents: by name, as one draw of ``posterior``, shape (1, num_data, ...).
        plan: how the pair is laid out on the batch.
    """

    batch: Any
    latents: dict[str, Tensor]
    plan: Layout

    @property
    def size(self) -> int:
        """How many simulations it is: each datum is one, or all together are, if a latent is shared by them."""
        return self.plan.num_data if self.plan.local else 1

    @property
    def truth(self) -> Tensor:
        """The components of the latents, shape (size, K)."""
        return components(self.latents, self.plan)[0]

    @property
    def features(self) -> Tensor:
        """The data of each simulation as one row of numbers, shape (size, ...)."""
        rows = [t.reshape(self.size, -1) for t in tensors_of(self.batch)]
        return torch.cat([r.double() for r in rows], 1)


@contextmanager
def simulating(lvm: LatentVariableModel, like: Any, seed: int) -> Iterator[Any]:
    """A context in which `lvm` is in evaluation mode and torch draws from `seed`; gives the batch `like` beside the model, or None."""
    check_contract(lvm)
    fixed = None if like is None else fixed_beside(lvm, like, seed).x
    device = device_of(lvm, "cpu" if fixed is None else tensors_of(fixed)[0].device)
    with seeded(seed, device), evaluation_mode(lvm):
        yield fixed


def batches(lvm: LatentVariableModel, like: Any, rebuild: Rebuild | None, rows: int) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """Batches of the model's own data, without end, each with all sites, shape (1, ...); `rows` data each if there is no `like`."""
    many = 1 if like is None else max(1, rows // len(Data(like)))
    while True:
        with _Observed() as observed:
            draws = sample(lvm, rows) if like is None else sample(lvm, many, like=like)
        each = [{n: v[None] for n, v in draws.items()}]
        if like is not None:
            each = [{n: v[i : i + 1] for n, v in draws.items()} for i in range(many)]
        for sites in each:
            yield _batch(lvm, {n: v[0] for n, v in sites.items()}, list(observed.names), like, rebuild), sites


def _batch(lvm: object, sites: dict[str, Tensor], observed: list[str], like: Any, rebuild: Rebuild | None) -> Any:
    if rebuild is not None:
        return rebuild(sites)
    if like is not None:
        return put_in(lvm, like, sites)  # type: ignore[arg-type]
    if len(observed) != 1:
        raise ValueError(
            f"A batch of {type(lvm).__name__} is not the value of its one observed site (it has {observed}): pass like=, a batch in which drawn data "
            "take the place of its own, or rebuild=, a function that makes a batch of a dict of draws."
        )
    return sites[observed[0]]


def simulations(lvm: LatentVariableModel, number: int, like: Any, rebuild: Rebuild | None, rows: int) -> Iterator[Simulated]:
    """At least `number` simulations, in batches of `rows` data; of whole batches like `like`, if a latent is shared by the data."""
    done, plans = 0, {}

    def plan_of(batch: Any) -> Layout:
        shapes = tuple(t.shape for t in tensors_of(batch))
        if shapes not in plans:
            plans[shapes] = layout(lvm, batch)
        return plans[shapes]

    for batch, sites in batches(lvm, like, rebuild, min(rows, number)):
        plan = plan_of(batch)
        latents = {n: sites[n] for n in plan.latents}
        if not (plan.local and Data(batch).divisible and len(Data(batch)) == plan.num_data):
            yield Simulated(batch, latents, plan)
            done += plan.num_data if plan.local else 1
        else:
            for start in range(0, plan.num_data, rows):  # a whole batch may be more than a pass should take
                part = Data(batch).subset(slice(start, start + rows))
                own = {n: v.narrow(plan.data_axes[n], start, len(part)) for n, v in latents.items()}
                yield Simulated(part.x, own, plan_of(part.x))
                done += len(part)
                if done >= number:
                    return
        if done >= number:
            return


def check_amortised(what: str, lvm: LatentVariableModel, like: Any, rebuild: Rebuild | None, seed: int) -> None:
    """Raises ContractError unless the guide can be calibrated as it is: it has spread, and looks at its batch or is the prior."""
    stream = batches(lvm, like, rebuild, 2)
    (first, _), (second, _) = next(stream), next(stream)
    plan = layout(lvm, first)
    if plan.degenerate:
        raise ContractError(
            f"{what}: the guide of {type(lvm).__name__} puts latent {plan.degenerate[0]!r} on one point, so it has no spread to calibrate; "
            "give it a guide with a density (vilvm.guides.fit_guide)."
        )
    if like is None and not plan.local:
        raise ContractError(
            f"{what}: {type(lvm).__name__} has a latent that its data share; pass like=a batch as large as those the guide is for."
        )
    looks = []
    for batch in (first, second):
        with seeded(seed, tensors_of(first)[0].device):
            looks.append(log_weights(lvm, batch, 10))
    alike = torch.equal(looks[0].log_guide, looks[1].log_guide)
    alike = alike and all(torch.equal(looks[0].latents[n], looks[1].latents[n]) for n in plan.latents)
    differ = any(not torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(second), strict=True))
    if alike and differ and looks[0].rate.abs().max() > 1e-4:
        raise ContractError(
            f"{what}: the guide of {type(lvm).__name__} does not look at its batch, so it can be right for one data set only, the one that "
            "it was fitted to; use vilvm.diagnostics.vsbc, which fits it anew to each."
        )


def components(latents: Mapping[str, Tensor], plan: Layout) -> Tensor:
    """Every component of every latent, shape (S, num_data, K); (S, 1, K) if a latent is shared by the data."""
    parts = [_own(v, plan.data_axes.get(n), plan.local) for n, v in latents.items()]
    return torch.cat([v.reshape(*v.shape[:2], -1).double() for v in parts], -1)


def names_of(latents: Mapping[str, Tensor], plan: Layout) -> tuple[str, ...]:
    """What the components are called: "z" if it is a number, else "z[3]" or "z[1,2]"."""
    shapes = {n: _own(v, plan.data_axes.get(n), plan.local).shape[2:] for n, v in latents.items()}
    return tuple(
        f"{name}[{','.join(map(str, index))}]" if index else name for name, shape in shapes.items() for index in np.ndindex(*shape)
    )


def _own(value: Tensor, axis: int | None, local: bool) -> Tensor:
    """Draws (S, ..., num_data, ...) of a latent as (S, num_data, ...), the data's dimension being `axis`; (S, 1, ...) of all."""
    value = value if axis is None else value.movedim(axis, 1)
    if local:
        return value
    return (value if axis is None else value[:, :_DATA]).unsqueeze(1)


def quantities(lvm: LatentVariableModel, simulated: Simulated, num_draws: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """What is ranked: the components of the latents and log p(x | z), of the truth (size, K) and of the guide's draws (S, size, K)."""
    batch, latents, plan = simulated
    drawn = log_weights(lvm, batch, num_draws, plan=plan)
    module = lvm if isinstance(lvm, torch.nn.Module) else Pair(lvm.model, lvm.guide)
    at_truth = log_weights(_AtTruth(module, latents), batch, 1, plan=plan)
    fits = torch.cat([_per_simulation(w.log_likelihood, plan) for w in (at_truth, drawn)])
    # To five digits: what is equal but for rounding is a tie, which the order of summation must not decide.
    fits = (fits / (1e-5 * (1 + fits.abs().mean(0)))).round()
    ordered = {n: drawn.latents[n] for n in latents}
    truth = torch.cat([simulated.truth, fits[0, :, None]], -1)
    return truth, torch.cat([components(ordered, plan), fits[1:, :, None]], -1), (*names_of(latents, plan), LIKELIHOOD)


def _per_simulation(log_likelihood: Tensor, plan: Layout) -> Tensor:
    """(S, num_data); (S, 1) if a latent is shared by the data."""
    return log_likelihood.double() if plan.local else log_likelihood.double().reshape(len(log_likelihood), -1).sum(1, keepdim=True)


class _AtTruth(Wrapped):
    """The model whose guide puts its latents where they are given."""

    def __init__(self, lvm: Any, latents: dict[str, Tensor]):
        super().__init__(lvm)
        self._latents = latents

    def model(self, batch: Any) -> Any:
        return self.inner_model(batch)

    def guide(self, batch: Any) -> Any:
        with _Given(self._latents):
            return self.inner_guide(batch)


class _Given(Messenger):
    """Puts latents on points, in the plates where they stand."""

    def __init__(self, latents: dict[str, Tensor]):
        super().__init__()
        self.latents = latents

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.latents and not msg["is_observed"]:
            value = self.latents[msg["name"]].reshape(msg["fn"].shape())
            msg["fn"], msg["value"], msg["done"] = dist.Delta(value, event_dim=msg["fn"].event_dim), value, True


class _Observed(Messenger):
    """Notes which sites of a simulated model are its data."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}  # in their order

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("was_observed"):
            self.names[msg["name"]] = None
