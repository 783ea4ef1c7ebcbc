"""Random small pairs, written for one sample: plates, latents, functions, likelihoods, guides.

A ``Spec`` lists the parts of a pair, and ``build`` builds it. Functions of latents are those of
``FUNCTIONS``, by where the latent stands and the dimensions of its event; each is written for a
single-sample run, without a plate over samples.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

import vilvm

__all__ = ["Built", "Spec", "build", "specs"]

PLATES = ("flat", "outer", "inner", "groups", "bare", "right", "unsized", "subsample")


@dataclass(frozen=True)
class Latent:
    """A latent: its plates, its distribution, and the function of it that enters the mean."""

    where: str  # "shared", "data", "parts" (both plates) or "groups"
    family: str  # "normal", "vector", "matrix", "mvn", "lognormal", "bernoulli", "categorical"
    function: str
    prior: str  # "fixed", or "hangs" on the latents before
    guide: str  # "fixed", "hangs", or "auxiliary" (of a lognormal)
    masked: bool


@dataclass(frozen=True)
class Spec:
    """The parts of a pair."""

    plates: str
    num_data: int
    parts: int
    width: int
    out: int
    latents: tuple[Latent, ...]
    post: str
    likelihood: str
    mask: str
    scale: str
    guide: str
    factor: bool
    guide_factor: bool
    deterministic: bool
    second: bool
    enumerated: bool
    training: bool
    seed: int


class Built(NamedTuple):
    """A pair and the facts that a test needs.

    Arguments:
        lvm: the pair.
        batch: its data.
        auxiliary: the guide's auxiliary values from those of the latents, or None for an
            autoguide's.
        sizes: numbers of samples at which a wrong broadcast has the right shape.
        categories: of the enumerated latent "c"; 0 without one.
        networks: that hold batch statistics.
    """

    lvm: Any
    batch: Tensor
    auxiliary: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None
    sizes: tuple[int, ...]
    categories: int
    networks: tuple[nn.Module, ...]


class Room:
    """Sizes and fixed tensors that the functions of a pair use, drawn from one seed."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.n, self.p, self.w, self.o = spec.num_data, spec.parts, spec.width, spec.out
        self.generator = torch.Generator().manual_seed(spec.seed)
        self.grid = {
            "outer": (self.n, self.p),
            "right": (self.n, self.p),
            "inner": (self.p, self.n),
        }.get(spec.plates, (self.n,))
        self.W = self.normal(self.w, self.o)
        self.W2 = self.normal(self.w + 2, self.o)
        self.V = self.normal(2 * self.w, self.o)
        self.one = self.normal(self.o)
        self.X = self.normal(*self.grid, self.w)
        self.Y = self.normal(self.n, 2)
        self.A = self.normal(self.n, self.p)
        self.table = self.normal(3, self.o)
        self.assigned = torch.randint(self.p, self.grid, generator=self.generator)
        self.net = self.module(
            nn.Sequential(nn.Linear(self.w, 5), nn.Tanh(), nn.Linear(5, self.o))
        )
        self.normed = self.module(
            nn.Sequential(nn.Linear(self.w, 5), nn.BatchNorm1d(5), nn.Linear(5, self.o))
        )
        self.norm = self.module(nn.BatchNorm1d(self.o))
        self.gru = self.module(nn.GRU(1, self.o, batch_first=True))
        self.conv = self.module(nn.Conv1d(1, self.o, 1))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def module(self, made: nn.Module) -> nn.Module:
        made = made.double().requires_grad_(False)
        for t in [*made.parameters(), *made.buffers()]:
            if t.is_floating_point():
                t.copy_(
                    torch.rand(t.shape, dtype=t.dtype, generator=self.generator) + 0.3
                )
        return made.train(self.spec.training)


def _rows(v: Tensor, r: Room) -> Tensor:
    return torch.stack([v[i] @ r.W for i in range(r.n)])


def _filled(v: Tensor, r: Room) -> Tensor:
    mean = torch.zeros(r.n, r.o, dtype=torch.float64)
    mean[:, 0] = v[:, 0]
    return mean


def _filled_scalar(v: Tensor, r: Room) -> Tensor:
    mean = torch.zeros(r.n, r.o, dtype=torch.float64)
    for i in range(r.n):
        mean[i, -1] = v[i]
    return mean


def _by_value(v: Tensor, r: Room) -> Tensor:
    return v @ r.W if v.mean() > 0 else (2 * v) @ r.W


def _positive(v: Tensor, r: Room) -> Tensor:
    mean = torch.zeros(r.n, r.w, dtype=torch.float64)
    mean[v > 0] = v[v > 0]
    return mean @ r.W


F = Callable[[Tensor, Room], Tensor]

FLAT: dict[int, dict[str, F]] = {
    0: {
        "v[:, None]": lambda v, r: v[:, None] * r.one,
        "outer": lambda v, r: torch.outer(v, r.one),
        "view": lambda v, r: v.view(-1, 1) @ r.one[None],
        "stack": lambda v, r: torch.stack([v] * r.w, 1) @ r.W,
        "expand": lambda v, r: v.expand(r.o, r.n).T,
        "repeat": lambda v, r: v.unsqueeze(1).repeat(1, r.o),
        "filled": _filled_scalar,
        "unsqueeze(-1)": lambda v, r: v.unsqueeze(-1) * r.one,
        "cat": lambda v, r: torch.cat([r.X[:, 1:], v[:, None]], -1) @ r.W,
        "less the mean": lambda v, r: (v - v.mean())[:, None],
        "gru": lambda v, r: r.gru(v.view(r.n, 1, 1))[0][:, -1],
        "dot": lambda v, r: (r.A.T @ v).sum() * r.one,
    },
    1: {
        "v @ W": lambda v, r: v @ r.W,
        "mm": lambda v, r: torch.mm(v, r.W),
        "einsum": lambda v, r: torch.einsum("nd,dk->nk", v, r.W),
        "cat": lambda v, r: torch.cat([v, r.Y], -1) @ r.W2,
        "cat, 1": lambda v, r: torch.cat([v, r.Y], 1) @ r.W2,
        "view": lambda v, r: v.view(len(r.Y), -1) @ r.W,
        "T": lambda v, r: (r.W.T @ v.T).T,
        "softmax": lambda v, r: v.softmax(dim=1) @ r.W,
        "rows": _rows,
        "filled": _filled,
        "v[:, 0]": lambda v, r: v[:, 0][:, None] * r.one,
        "v[:, -1:]": lambda v, r: v[:, -1:] * r.one,
        "sum(1)": lambda v, r: v.sum(1, keepdim=True) * r.one,
        "mean(0)": lambda v, r: (v - v.mean(0)) @ r.W,
        "sum(0)": lambda v, r: v.sum(0) @ r.W,
        "normalize": lambda v, r: nn.functional.normalize(v) @ r.W,
        "net": lambda v, r: r.net(v),
        "batch norm": lambda v, r: r.normed(v),
        "by value": _by_value,
        "positive": _positive,
        "conv": lambda v, r: r.conv(v.unsqueeze(1)).sum(2),
        "cumsum": lambda v, r: v.cumsum(1) @ r.W,
        "unbind": lambda v, r: v.unbind(1)[-1][:, None] * r.one,
        "gather": lambda v, r: v.gather(1, (r.assigned % r.w)[:, None]) * r.one,
        "index": lambda v, r: v[torch.arange(r.n), r.assigned % r.w][:, None] * r.one,
        "flip": lambda v, r: v.flip(1) @ r.W,
        "last dim": lambda v, r: (v.unsqueeze(-1) * r.W).sum(-2),
    },
    2: {
        "view": lambda v, r: v.view(r.n, -1) @ r.V,
        "flatten": lambda v, r: v.flatten(1) @ r.V,
        "flatten(-2)": lambda v, r: v.flatten(-2) @ r.V,
        "sum(1)": lambda v, r: v.sum(1) @ r.W,
        "v[:, 0]": lambda v, r: v[:, 0] @ r.W,
        "permute": lambda v, r: v.permute(0, 2, 1)[..., 0] @ r.W,
        "bmm": lambda v, r: torch.bmm(v, r.X.unsqueeze(2)).sum(1) * r.one,
        "transpose": lambda v, r: v.transpose(1, 2)[:, :, 1] @ r.W,
        "reshape": lambda v, r: v.reshape(-1, 2 * r.w) @ r.V,
    },
}

SHARED: dict[int, dict[str, F]] = {
    0: {
        "times X": lambda v, r: (v * r.X[..., :1]) * r.one,
        "plain": lambda v, r: v * r.one,
        "expand": lambda v, r: v.expand(*r.grid, r.o),
        "item": lambda v, r: v.item() * r.one,
        "full": lambda v, r: torch.ones(*r.grid, r.o).double() * v,
    },
    1: {
        "X @ v": lambda v, r: (r.X @ v)[..., None] * r.one,
        "(X * v).sum": lambda v, r: (r.X * v).sum(-1)[..., None] * r.one,
        "v @ W": lambda v, r: v @ r.W,
        "v[assigned]": lambda v, r: v[r.assigned % r.w][..., None] * r.one,
        "Vindex": lambda v, r: Vindex(v)[..., r.assigned % r.w][..., None] * r.one,
        "sum(0)": lambda v, r: v.sum(0) * r.one,
        "softmax(0)": lambda v, r: v.softmax(0) @ r.W,
        "for w in v": lambda v, r: sum(
            (w * r.X[..., i : i + 1] for i, w in enumerate(v)), torch.zeros(r.o)
        ),
        "outer": lambda v, r: torch.outer(r.one, v).sum(1),
        "unpacked": lambda v, r: (v[0] + v[1] * r.X[..., :1]) * r.one,
        "diag": lambda v, r: r.X @ torch.diag(v) @ r.W,
    },
    2: {
        "X @ v.T": lambda v, r: (r.X @ v.T).sum(-1, keepdim=True) * r.one,
        "v[assigned]": lambda v, r: v[r.assigned % 2] @ r.W,
        "v[0]": lambda v, r: v[0] @ r.W,
        "einsum": lambda v, r: (
            torch.einsum("...d,kd->...k", r.X, v).sum(-1, keepdim=True) * r.one
        ),
        "view": lambda v, r: v.view(-1) @ r.V,
        "sum(0)": lambda v, r: v.sum(0) @ r.W,
        "linear": lambda v, r: (
            nn.functional.linear(r.X, v).sum(-1, keepdim=True) * r.one
        ),
    },
}

GROUPS: dict[int, dict[str, F]] = {
    0: {
        "v[assigned]": lambda v, r: v[r.assigned][:, None] * r.one,
        "Vindex": lambda v, r: Vindex(v)[..., r.assigned][..., None] * r.one,
        "one hot": lambda v, r: (
            (nn.functional.one_hot(r.assigned, r.p).double() @ v)[:, None] * r.one
        ),
        "A @ v": lambda v, r: (r.A @ v)[:, None] * r.one,
        "sum(0)": lambda v, r: v.sum(0) * r.one,
        "mean()": lambda v, r: v.mean() * r.one,
        "softmax(0)": lambda v, r: v.softmax(0)[r.assigned][:, None] * r.one,
        "loop": lambda v, r: torch.stack([v[k] for k in r.assigned])[:, None] * r.one,
        "index_select": lambda v, r: v.index_select(0, r.assigned)[:, None] * r.one,
    },
    1: {
        "v[assigned]": lambda v, r: v[r.assigned] @ r.W,
        "softmax(dim=1)": lambda v, r: v.softmax(dim=1)[r.assigned] @ r.W,
        "A @ v": lambda v, r: r.A @ v @ r.W,
        "mean(0)": lambda v, r: v.mean(0) @ r.W,
        "normalize": lambda v, r: nn.functional.normalize(v)[r.assigned] @ r.W,
        "T": lambda v, r: (r.W.T @ v.T).T[r.assigned],
        "embedding": lambda v, r: nn.functional.embedding(r.assigned, v) @ r.W,
    },
    2: {
        "v[assigned]": lambda v, r: v[r.assigned].sum(1) @ r.W,
        "view": lambda v, r: v.view(r.p, -1)[r.assigned] @ r.V,
    },
}

OUTER: dict[int, dict[str, F]] = {  # of a latent of the data plate at −2: (n, 1, ...)
    0: {
        "plain": lambda v, r: v[..., None] * r.one,
        "reshape": lambda v, r: v.reshape(-1, 1, 1) * r.one,
        "expand": lambda v, r: v.expand(r.n, r.p)[:, :, None] * r.one,
        "squeeze": lambda v, r: v.squeeze(1)[:, None, None] * r.one,
        "v[:, 0]": lambda v, r: v[:, 0].view(-1, 1, 1) * r.one,
    },
    1: {
        "plain": lambda v, r: v @ r.W,
        "reshape": lambda v, r: v.reshape(-1, 1, r.w) @ r.W,
        "expand": lambda v, r: v.expand(r.n, r.p, r.w) @ r.W,
        "repeat": lambda v, r: v.repeat(1, r.p, 1) @ r.W,
        "cat": lambda v, r: torch.cat([v] * r.p, 1) @ r.W,
        "squeeze": lambda v, r: r.net(v.squeeze(1))[:, None],
    },
    2: {
        "flatten": lambda v, r: v.flatten(2) @ r.V,
        "v[:, :, 0]": lambda v, r: v[:, :, 0] @ r.W,
    },
}

# of a latent of the data plate at −1 under a plate at −2: (n, ...)
INNER: dict[int, dict[str, F]] = {
    0: {
        "plain": lambda v, r: v[..., None] * r.one,
        "expand": lambda v, r: v.expand(r.p, r.n)[:, :, None] * r.one,
        "v[None]": lambda v, r: v[None, :, None] * r.one,
    },
    1: {
        "plain": lambda v, r: v @ r.W,
        "expand": lambda v, r: v.expand(r.p, r.n, r.w) @ r.W,
        "v[None]": lambda v, r: v[None] @ r.W,
        "net": lambda v, r: r.normed(v),
        "stack": lambda v, r: torch.stack([v] * r.p) @ r.W,
    },
    2: {"flatten": lambda v, r: v.flatten(1) @ r.V},
}

PARTS: dict[int, dict[str, F]] = {  # of a latent of both plates: (*grid, ...)
    0: {
        "plain": lambda v, r: v[..., None] * r.one,
        "cumsum": lambda v, r: v.cumsum(1)[:, :, None] * r.one,
        "less the mean": lambda v, r: (v - v.mean(1, keepdim=True))[..., None],
        "T": lambda v, r: v.T.reshape(-1).view(*reversed(r.grid)).T[..., None] * r.one,
        "softmax": lambda v, r: v.softmax(1)[..., None] * r.one,
    },
    1: {
        "plain": lambda v, r: v @ r.W,
        "reshape": lambda v, r: r.net(v.reshape(-1, r.w)).reshape(*r.grid, r.o),
        "batch norm": lambda v, r: r.normed(v.view(-1, r.w)).view(*r.grid, r.o),
        "flip": lambda v, r: v.flip(1) @ r.W,
        "einsum": lambda v, r: torch.einsum("abd,dk->abk", v, r.W),
    },
    2: {
        "flatten": lambda v, r: v.flatten(2) @ r.V,
        "v[:, :, 0]": lambda v, r: v[:, :, 0] @ r.W,
    },
}

DISCRETE: dict[str, F] = {
    "table[v]": lambda v, r: r.table[v.long()],
    "Vindex": lambda v, r: Vindex(r.table)[v.long()],
    "one hot": lambda v, r: nn.functional.one_hot(v.long(), 3).double() @ r.table,
    "embedding": lambda v, r: nn.functional.embedding(v.long(), r.table),
}
DISCRETE_FLAT: dict[str, F] = {
    **DISCRETE,
    "loop": lambda v, r: torch.stack([r.table[int(k)] for k in v]),
    "index_select": lambda v, r: r.table.index_select(0, v.long()),
    "masked": lambda v, r: torch.where((v > 0)[:, None], r.table[1], r.table[0]),
}

POST: dict[str, F] = {
    "none": lambda t, r: t,
    "softmax(dim=1)": lambda t, r: 3 * t.softmax(dim=1),
    "softmax(-1)": lambda t, r: 3 * t.softmax(-1),
    "normalize": lambda t, r: nn.functional.normalize(t),
    "less row 0": lambda t, r: t - t[0],
    "in place": lambda t, r: t.clone().index_fill_(1, torch.tensor([0]), 0.5),
    "T.T": lambda t, r: (2 * t.T).T if t.dim() == 2 else t,
    "dict of rows": lambda t, r: torch.stack(list(t)),
}
POST_FLAT: dict[str, F] = {
    **POST,
    "batch norm": lambda t, r: r.norm(t),
    "rnn": lambda t, r: r.gru(t.unsqueeze(-1))[0].mean(1),
    "view": lambda t, r: t.reshape(-1)[torch.arange(r.n * r.o)].view(r.n, r.o),
}

# Functions that keep leading dimensions unchanged, so that they are right under samples too: drawn
# more often than by chance.
KEEPING = {
    "v @ W",
    "net",
    "last dim",
    "unsqueeze(-1)",
    "flatten(-2)",
    "plain",
    "table[v]",
    "Vindex",
    "embedding",
    "softmax(-1)",
    "none",
}

EVENTS = {
    "normal": 0,
    "lognormal": 0,
    "vector": 1,
    "mvn": 1,
    "matrix": 2,
    "bernoulli": 0,
    "categorical": 0,
}
DISCRETE_FAMILIES = ("bernoulli", "categorical")


def functions(plates: str, where: str, family: str) -> dict[str, F]:
    """The functions through which a latent of these plates and family may enter the mean."""
    if family in DISCRETE_FAMILIES:
        if (where == "data" and plates == "outer") or where == "groups":
            return {"sum": lambda v, r: v.double().sum() * r.one}
        return (
            DISCRETE_FLAT
            if (where, plates) in (("data", "flat"), ("data", "groups"))
            else DISCRETE
        )
    events = EVENTS[family]
    if where == "shared":
        return SHARED[events]
    if where == "groups":
        return GROUPS[events]
    if where == "parts":
        return PARTS[events]
    return {"outer": OUTER, "inner": INNER}.get(plates, FLAT)[events]


@st.composite
def latents_of(draw: Any, plates: str, index: int, custom: bool) -> Latent:
    places = {
        "flat": ["data"] * 3 + ["shared"],
        "subsample": ["data"] * 3 + ["shared"],
        "unsized": ["data"],
        "bare": ["shared"],
    }
    places |= {"groups": ["groups", "groups", "data", "shared"], "right": ["parts"]}
    where = draw(
        st.sampled_from(places.get(plates, ["data", "data", "parts", "shared"]))
    )
    families = ["normal", "vector", "vector", "matrix", "mvn", "lognormal"]
    if plates == "right":
        families = ["normal", "lognormal"]
    if plates == "unsized":
        families = ["normal", "vector", "matrix", "lognormal"]
    if custom:
        families = [*families, "bernoulli", "categorical"]
    family = draw(st.sampled_from(families))
    chosen = sorted(functions(plates, where, family))
    keeping = [name for name in chosen if name in KEEPING]
    chosen = keeping if keeping and draw(st.booleans()) else chosen
    guides = ["fixed", "fixed", "hangs"] + (
        ["auxiliary"] * 2 if family == "lognormal" else []
    )
    return Latent(
        where,
        family,
        draw(st.sampled_from(chosen)),
        draw(st.sampled_from(["fixed", "fixed", "hangs"])) if index else "fixed",
        draw(st.sampled_from(guides))
        if custom and (index or family == "lognormal")
        else "fixed",
        custom
        and where != "shared"
        and where != "groups"
        and draw(st.integers(0, 5)) == 0,
    )


def _drawn_post(draw: Any, flat: bool) -> str:
    if not draw(st.booleans()):
        return "none"
    return draw(st.sampled_from(sorted(POST_FLAT if flat else POST)))


@st.composite
def specs(draw: Any) -> Spec:
    """Random pairs.

    Pairs that plain Pyro refuses are not drawn (single-sample functions under enumeration).
    """
    plates = draw(st.sampled_from(PLATES))
    n = draw(st.integers(2, 5))
    autos = (
        ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal"]
        if plates not in ("unsized", "subsample")
        else []
    )
    guide = draw(st.sampled_from(["own", "own", "own", *autos]))
    count = draw(st.sampled_from([1, 1, 2, 2, 3]))
    latents = tuple(draw(latents_of(plates, i, guide == "own")) for i in range(count))
    enumerated = (
        guide == "own"
        and plates in ("flat", "groups", "subsample")
        and draw(st.integers(0, 4)) == 0
    )
    flat = plates not in ("outer", "inner", "right")
    likelihoods = ["normal", "normal", "scalar", "bernoulli", "poisson", "categorical"]
    if plates == "right":
        likelihoods = ["scalar", "categorical"]
    likelihood = draw(
        st.sampled_from(["normal", "bernoulli"] if enumerated else likelihoods)
    )
    return Spec(
        plates=plates,
        num_data=n,
        parts=draw(st.integers(2, 4)),
        width=draw(st.integers(2, 4)),
        out=draw(st.integers(2, 4)),
        latents=latents,
        post=_drawn_post(draw, flat),
        likelihood=likelihood,
        mask=draw(st.sampled_from(["none", "none", "poutine", "dist"])),
        scale=draw(st.sampled_from(["none", "none", "likelihood", "all", "latents"])),
        guide=guide,
        factor=draw(st.integers(0, 4)) == 0,
        guide_factor=guide == "own" and draw(st.integers(0, 6)) == 0,
        deterministic=draw(st.booleans()),
        second=not enumerated and draw(st.integers(0, 3)) == 0,
        enumerated=enumerated,
        training=draw(st.integers(0, 3)) == 0,
        seed=draw(st.integers(0, 10_000)),
    )


class _Made:
    """The two functions of a spec."""

    def __init__(self, spec: Spec):
        self.spec, self.room = spec, Room(spec)
        room = self.room
        batches = {"shared": (), "parts": room.grid, "groups": (room.p,)}
        self.shapes = []
        for latent in spec.latents:
            data = (room.n, 1) if spec.plates == "outer" else (room.n,)
            event = ((), (room.w,), (2, room.w))[EVENTS[latent.family]]
            self.shapes.append((batches.get(latent.where, data), event))
        self.locs = [room.normal(*b, *e) / 2 for b, e in self.shapes]
        self.scales = [
            torch.rand((*b, *e), generator=room.generator).double() * 0.5 + 0.3
            for b, e in self.shapes
        ]
        self.priors = [room.normal(*b, *e) / 4 for b, e in self.shapes]
        self.cholesky = (
            torch.eye(room.w).double() + room.normal(room.w, room.w).tril() / 4
        )
        self.masks = [
            torch.rand(b, generator=room.generator) > 0.4 for b, _ in self.shapes
        ]
        self.mask = torch.rand(room.grid, generator=room.generator) > 0.3
        self.batch = self._data()

    def _data(self) -> Tensor:
        room = self.room
        shape = (
            (*room.grid, room.o)
            if self.spec.likelihood in ("normal", "bernoulli", "poisson")
            else room.grid
        )
        raw = torch.randn(shape, generator=room.generator).double()
        if self.spec.likelihood == "bernoulli":
            return (raw > 0).double()
        if self.spec.likelihood == "poisson":
            return raw.abs().round()
        if self.spec.likelihood == "categorical":
            return raw.abs().round().clamp(max=room.o - 1)
        return raw

    # Plates
    # ------------------------------------------------------------------------------------------

    def plates(self, x: Tensor) -> dict[str, list[Any]]:
        """The plates by position, each created once per run, since some are entered twice."""
        spec, room = self.spec, self.room
        places: dict[str, list[Any]] = {
            "shared": [],
            "data": [],
            "parts": [],
            "groups": [],
        }
        if spec.plates == "bare":
            return places
        if any(latent.where == "groups" for latent in spec.latents):
            places["groups"] = [pyro.plate("groups", room.p, dim=-1)]
        if spec.plates == "unsized":
            data = pyro.plate("data")
        elif spec.plates == "subsample":
            data = pyro.plate("data", 3 * len(x), subsample=x)
        else:
            data = pyro.plate(
                "data", room.n, dim=-2 if spec.plates in ("outer", "right") else -1
            )
        places["data"] = places["parts"] = [data]
        if spec.plates in ("outer", "inner"):
            places["parts"] = [
                data,
                pyro.plate("parts", room.p, dim=-1 if spec.plates == "outer" else -2),
            ]
        return places

    # Latents
    # ------------------------------------------------------------------------------------------

    def distribution(self, i: int, loc: Tensor, scale: Tensor) -> Any:
        """The prior of latent i, expanded to its batch shape where nothing else expands it."""
        latent, (_batch, event) = self.spec.latents[i], self.shapes[i]
        if latent.family == "bernoulli":
            return dist.Bernoulli(logits=loc)
        if latent.family == "categorical":
            return dist.Categorical(logits=torch.stack([loc, -loc, 0.5 * loc], -1))
        if latent.family == "lognormal":
            return dist.LogNormal(loc / 2, scale)
        if latent.family == "mvn":
            return dist.MultivariateNormal(loc, scale_tril=self.cholesky)
        return (
            dist.Normal(loc, scale).to_event(len(event))
            if event
            else dist.Normal(loc, scale)
        )

    def hanging(self, values: list[Tensor]) -> Any:
        """The part of a latent's location that depends on the latents before it."""
        last = values[-1].double()
        if self.spec.latents[len(values) - 1].where == "shared" and last.dim() == 0:
            return 0.3 * last
        return 0.1 * torch.tanh(sum(v.double().sum() for v in values))

    def drawn(
        self, i: int, guide: bool, values: list[Tensor], plates: dict[str, list[Any]]
    ) -> Tensor:
        """Samples latent i."""
        latent = self.spec.latents[i]
        hangs = (latent.guide if guide else latent.prior) == "hangs" and values
        loc = (self.locs if guide else self.priors)[i]
        scale = self.scales[i] if guide else torch.ones_like(self.scales[i])
        with ExitStack() as stack:
            if self.spec.scale == "latents":
                stack.enter_context(poutine.scale(scale=0.25))
            for plate in plates[latent.where]:
                stack.enter_context(plate)
            if hangs:
                loc = loc + self.hanging(values)
            if latent.masked:
                stack.enter_context(poutine.mask(mask=self.masks[i]))
            if guide and latent.guide == "auxiliary":
                e = pyro.sample(
                    f"z{i}_noise",
                    dist.Normal(loc / 2, scale),
                    infer={"is_auxiliary": True},
                )
                return pyro.sample(f"z{i}", dist.Delta(e.exp(), log_density=-e))
            return pyro.sample(f"z{i}", self.distribution(i, loc, scale))

    # The two functions
    # ------------------------------------------------------------------------------------------

    def model(self, x: Tensor) -> None:
        spec, room = self.spec, self.room
        values: list[Tensor] = []
        plates = self.plates(x)
        for i in range(len(spec.latents)):
            values.append(self.drawn(i, False, values, plates))
        total: Any = 0.1 * room.X[..., :1] * room.one
        for latent, value in zip(spec.latents, values, strict=True):
            total = total + functions(spec.plates, latent.where, latent.family)[
                latent.function
            ](value, room)
        total = 1.5 * torch.tanh((POST_FLAT | POST)[spec.post](total, room))
        if spec.deterministic:
            pyro.deterministic("total", total, event_dim=total.dim())
        with ExitStack() as stack:
            for plate in plates["parts"]:
                stack.enter_context(plate)
            if spec.factor:
                penalty = -0.1 * total.square().sum(-1)
                pyro.factor(
                    "penalty", penalty.sum() if spec.plates == "bare" else penalty
                )
            if spec.enumerated:
                c = pyro.sample(
                    "c",
                    dist.Categorical(logits=room.table[:, 0]),
                    infer={"enumerate": "parallel"},
                )
                total = total + Vindex(room.table)[c]
            if spec.scale == "likelihood":
                stack.enter_context(poutine.scale(scale=0.5))
            if spec.mask == "poutine" and spec.plates != "bare":
                stack.enter_context(poutine.mask(mask=self.mask))
            self.observe("x", total, x, spec.mask == "dist")
            if spec.second:
                pyro.sample(
                    "y",
                    self.closed(dist.Normal(total[..., 0], 0.7), total.dim() - 1),
                    obs=room.X[..., 0],
                )

    def closed(self, fn: Any, dims: int) -> Any:
        """Without a plate, all data are one event."""
        return fn.to_event(dims) if self.spec.plates == "bare" else fn

    def observe(self, name: str, total: Tensor, x: Tensor, masked: bool) -> None:
        kind = self.spec.likelihood
        if kind == "normal":
            fn: Any = dist.Normal(total, 0.8).to_event(1)
        elif kind == "bernoulli":
            fn = dist.Bernoulli(logits=total).to_event(1)
        elif kind == "poisson":
            fn = dist.Poisson(total.exp()).to_event(1)
        elif kind == "categorical":
            fn = dist.Categorical(logits=total)
        else:
            fn = dist.Normal(total.sum(1) if total.dim() == 2 else total[:, :, 0], 0.8)
        fn = fn.mask(self.mask) if masked else fn
        pyro.sample(name, self.closed(fn, 1), obs=x)

    def guide(self, x: Tensor) -> None:
        values: list[Tensor] = []
        plates = self.plates(x)
        for i in range(len(self.spec.latents)):
            values.append(self.drawn(i, True, values, plates))
        if self.spec.guide_factor:
            if self.spec.scale == "latents":
                with poutine.scale(scale=0.25):
                    pyro.factor(
                        "jacobian", torch.tensor(0.3).double(), has_rsample=True
                    )
            else:
                pyro.factor("jacobian", torch.tensor(0.3).double(), has_rsample=True)

    def auxiliary(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        own = [
            i
            for i, latent in enumerate(self.spec.latents)
            if latent.guide == "auxiliary"
        ]
        return {f"z{i}_noise": values[f"z{i}"].log() for i in own}


AUTOS = {
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
}


def build(spec: Spec) -> Built:
    """The pair of a spec."""
    made = _Made(spec)
    model, guide = made.model, made.guide
    if spec.scale == "all":
        model, guide = poutine.scale(model, scale=0.5), poutine.scale(guide, scale=0.5)
    auto = spec.guide != "own"
    guide = AUTOS[spec.guide](model, init_scale=0.3) if auto else guide
    room = made.room
    return Built(
        lvm=vilvm.Pair(model, guide),
        batch=made.batch,
        auxiliary=None if auto else made.auxiliary,
        sizes=(room.n, room.p, room.w, room.o, 3),
        categories=3 if spec.enumerated else 0,
        networks=(room.net, room.normed, room.norm, room.gru, room.conv),
    )
