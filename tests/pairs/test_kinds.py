"""Pairs written for one sample: each result equals that of a single run, or is refused.

In most of them the guide is the exact posterior, so that the log-weight of every single sample is
log p(x), known in closed form or by enumeration; the others are compared sample by sample with
plain Pyro.
"""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.ops.indexing import Vindex
from torch import nn

import vilvm
from tests.pairs.oracle import (
    Exact,
    discrete,
    gaussian,
    pair,
    plain_log_weight,
    pyro_elbos,
    replayed,
    shared_gaussian,
)

# a warning of Pyro
pytestmark = pytest.mark.filterwarnings(
    "ignore:Found plate statements in guide but not model"
)

STILL = partial(torch.optim.SGD, lr=0.0)


def check_log_weights(case, sizes=(5, 100)):
    """Every log-weight equals log p(x)."""
    for count in sorted({*sizes, *case.sizes}):
        found = vilvm.log_weights(case.lvm, case.batch, count).log_weight.detach()
        expected = case.evidence.double().expand(count, *case.evidence.shape)
        assert found.shape == expected.shape, f"{count} samples"
        torch.testing.assert_close(
            found,
            expected,
            rtol=1e-5,
            atol=1e-4,
            msg=lambda m, c=count: f"{c} samples: {m}",
        )


def check_evaluate(case, sizes=(5, 100)):
    """ELBO, IWAE and −(rate + distortion) equal log p(x), without Monte Carlo error."""
    for count in sorted({*sizes, case.sizes[0]}):
        found = vilvm.evaluate(case.lvm, case.batch, num_samples=count)
        expected = case.evidence.double().reshape(-1)
        for name in ("elbo", "iwae"):
            got = found.bounds[name].values
            torch.testing.assert_close(
                got,
                expected,
                rtol=1e-5,
                atol=1e-4,
                msg=lambda m, c=count: f"{c} samples: {m}",
            )
        torch.testing.assert_close(
            -(found.rate.values + found.distortion.values),
            expected,
            rtol=1e-5,
            atol=1e-4,
        )


def check_fit(case, **settings):
    """The history's ELBO and −(rate + distortion) equal log p(x).

    Per datum, or of all data if they share a latent.
    """
    expected = case.evidence.double().mean().item()
    history = vilvm.fit(
        case.lvm,
        case.batch,
        steps=3,
        optimizer=STILL,
        validation=case.batch,
        **settings,
    ).history
    assert history["elbo"] == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert history["validation_elbo"] == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert -(history["rate"] + history["distortion"]) == pytest.approx(
        expected, rel=1e-5, abs=1e-4
    )


def check_all(case):
    """One test per pair, which is traced once."""
    check_log_weights(case)
    check_evaluate(case, sizes=(100,))
    check_fit(case)


def few(names, *kept):
    """Parameters, of which some are in the fast tests and the rest in the slow ones."""
    return [n if n in kept else pytest.param(n, marks=pytest.mark.slow) for n in names]


# Functions of one sample
# ----------------------------------------------------------------------------------------------

D, K, N = 3, 4, 7


def written_in_place(z):
    mean = torch.zeros(N, 2, dtype=z.dtype)
    mean[:, 0] = z
    mean[:, 1] = 2 * z
    return mean


def in_a_loop(z):
    return torch.stack([z[i] * (i + 1) for i in range(N)])


def rows_appended(z):
    rows = []
    for i in range(N):
        rows.append(z[i, 0] - z[i, 1])
    return torch.stack(rows)


def fixed(*shape, seed=1):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


Y, W, FEATURES, CHOLESKY = (
    fixed(N, 2),
    fixed(3, 5),
    fixed(N, D, seed=3),
    (fixed(N, N, seed=4) / 3).tril() + torch.eye(N).double(),
)
ASSIGNED = torch.tensor([0, 1, 2, 3, 3, 0, 1])

LOCAL = {
    "z[:, 0]": (lambda z: z[:, 0] + 0.5 * z[:, 1], (2,), ()),
    "z[0:, 0]": (lambda z: z[0:, 0], (2,), ()),
    "z[:, None]": (lambda z: z[:, None] * torch.ones(2), (), (2,)),
    "z[range, index]": (lambda z: z[torch.arange(N), ASSIGNED % 3], (D,), ()),
    "torch.cat([z, y], -1)": (lambda z: torch.cat([z, Y], -1) @ W.T, (D,), (3,)),
    "torch.cat([z, y], 1)": (lambda z: torch.cat([z, Y], 1) @ W.T, (D,), (3,)),
    "torch.cat([y, z[:, None]], -1)": (
        lambda z: torch.cat([Y, z[:, None]], -1) @ W[:, :3].T,
        (),
        (3,),
    ),
    "torch.hstack": (lambda z: torch.hstack([z, Y]) @ W.T, (D,), (3,)),
    "torch.stack([z, y], 1)": (
        lambda z: torch.stack([z, Y[:, 0], 2 * z], 1) @ W[:, :3].T,
        (),
        (3,),
    ),
    "z.view(len(x), -1)": (lambda z: z.view(N, -1) @ fixed(4, 3), (2, 2), (3,)),
    "z.reshape(-1, D)": (lambda z: z.reshape(-1, D) @ W[:, :3].T, (D,), (3,)),
    "z.flatten(1)": (lambda z: z.flatten(1) @ fixed(4, 3), (2, 2), (3,)),
    "z.view(z.shape[0], 1, D)": (
        lambda z: z.view(z.shape[0], 1, D).expand(-1, 2, -1).sum(2),
        (D,),
        (2,),
    ),
    "z.sum(1)": (lambda z: z.sum(1), (D,), ()),
    "z.mean(dim=1)": (lambda z: z.mean(dim=1), (D,), ()),
    "z.cumsum(1)": (lambda z: z.cumsum(1), (D,), (D,)),
    "z.T": (lambda z: (W[:, :3] @ z.T).T, (D,), (3,)),
    "z.t()": (lambda z: z.t()[0] - z.t()[1], (D,), ()),
    "z.permute(0, 2, 1)": (lambda z: z.permute(0, 2, 1)[:, :, 0], (2, 3), (3,)),
    "z.transpose(0, 1)": (lambda z: z.transpose(0, 1).sum(0), (D,), ()),
    "einsum": (lambda z: torch.einsum("nd,kd->nk", z, W[:, :3]), (D,), (3,)),
    "torch.mm": (lambda z: torch.mm(z, W[:, :3].T), (D,), (3,)),
    "torch.bmm": (
        lambda z: torch.bmm(z.unsqueeze(1), FEATURES.unsqueeze(2)).squeeze(),
        (D,),
        (),
    ),
    "torch.addmm": (lambda z: torch.addmm(W[0, :3], z, W[:, :3]), (D,), (3,)),
    "in place": (written_in_place, (), (2,)),
    "loop over data": (in_a_loop, (), ()),
    "rows appended": (rows_appended, (2,), ()),
    "unbind": (lambda z: z.unbind(1)[0] + z.unbind(1)[2], (D,), ()),
    "chunk": (lambda z: z.chunk(2, 1)[0] + z.chunk(2, 1)[1], (4,), (2,)),
    "split": (lambda z: torch.split(z, [1, 2], dim=1)[1], (D,), (2,)),
    "index_select": (lambda z: z.index_select(1, torch.tensor([2, 0])), (D,), (2,)),
    "gather": (
        lambda z: z.gather(1, torch.arange(N)[:, None] % 3).squeeze(1),
        (D,),
        (),
    ),
    "z.expand": (lambda z: z.expand(2, N).T, (), (2,)),
    "z.repeat": (lambda z: z.repeat(2, 1).T, (), (2,)),
    "F.pad": (lambda z: nn.functional.pad(z, (1, 0)), (2,), (3,)),
    "conv1d": (
        lambda z: nn.functional.conv1d(z.unsqueeze(1), W[:1, None, :2])[:, 0],
        (4,),
        (3,),
    ),
}

SHARED = {
    "locs[assignment]": (lambda z: z[ASSIGNED], (K,), ()),
    "locs[assignment], vectors": (lambda z: z[ASSIGNED], (K, 2), (2,)),
    "locs[assignment].sum(1)": (lambda z: z[ASSIGNED].sum(1), (K, 2), ()),
    "f = L @ eps": (lambda z: CHOLESKY @ z, (N,), ()),
    "f = eps @ L.T": (lambda z: z @ CHOLESKY.T, (N,), ()),
    "f = (eps @ L.T).T": (lambda z: (z @ CHOLESKY.T).T, (2, N), (2,)),
    "f = L.mv(eps)": (lambda z: CHOLESKY.mv(z), (N,), ()),
    "X @ beta": (lambda z: FEATURES @ z, (D,), ()),
    "(X * beta).sum(1)": (lambda z: (FEATURES * z).sum(1), (D,), ()),
    "X @ B": (lambda z: FEATURES @ z, (D, 2), (2,)),
    "X @ z.T": (lambda z: FEATURES @ z.T, (2, D), (2,)),
    "z.sum(0)": (lambda z: z.sum(0).expand(N), (K,), ()),
    "z.sum(0) of a matrix": (lambda z: z.sum(0).expand(N, 2), (K, 2), (2,)),
    "z.mean()": (lambda z: z.mean() * FEATURES[:, 0], (K,), ()),
    "z[0] + z[1] * t": (lambda z: z[0] + z[1] * FEATURES[:, 0], (2,), ()),
    "a, b = z": (lambda z: sum(w * FEATURES[:, i] for i, w in enumerate(z)), (2,), ()),
    "F.linear": (
        lambda z: nn.functional.linear(FEATURES, z[:, :D], z[:, D]),
        (2, D + 1),
        (2,),
    ),
    "z.cumsum(0)": (lambda z: z.cumsum(0), (N,), ()),
    "torch.diag": (lambda z: FEATURES @ torch.diag(z), (D,), (D,)),
    "torch.outer": (lambda z: torch.outer(FEATURES[:, 0], z), (2,), (2,)),
    "einsum": (lambda z: torch.einsum("nd,dk->nk", FEATURES, z), (D, 2), (2,)),
    "z.repeat_interleave": (lambda z: z.repeat_interleave(2)[:N], (K,), ()),
    "z.view(-1, 1)": (lambda z: (FEATURES @ z.view(-1, 1)).squeeze(1), (D,), ()),
}


@pytest.mark.parametrize(
    "name",
    few(
        LOCAL,
        "z[:, 0]",
        "torch.cat([z, y], -1)",
        "z.view(len(x), -1)",
        "z.mean(dim=1)",
        "z.cumsum(1)",
        "z.T",
        "einsum",
        "in place",
        "loop over data",
        "z.expand",
    ),
)
def test_linear_functions_of_a_local_latent(name):
    decode, shape, out = LOCAL[name]
    check_all(gaussian(decode, shape, out, num_data=N))


@pytest.mark.parametrize(
    "name",
    few(
        SHARED,
        "locs[assignment]",
        "f = L @ eps",
        "f = eps @ L.T",
        "z.sum(0)",
        "z.mean()",
        "X @ z.T",
        "z.repeat_interleave",
    ),
)
def test_linear_functions_of_a_shared_latent(name):
    decode, shape, out = SHARED[name]
    check_all(shared_gaussian(decode, shape, out, num_data=N))


def test_mini_batches_of_single_sample_functions():
    case = gaussian(
        lambda z: torch.cat([z, z.flip(1)], -1) @ fixed(2 * D, 2),
        (D,),
        (2,),
        num_data=12,
    )
    assert case.evidence.shape == (12,)
    check_fit(case)


# Functions of codes: nonlinear, exact by enumeration
# ----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell(2, 4, batch_first=True).double()

    def forward(self, z):
        return self.cell(z.view(len(z), 2, 2))[0][:, -1]


def by_mask(z):
    mean = torch.zeros_like(FIXED_ROWS[: len(z)])
    mean[z > 0] = z[z > 0]
    return mean


def selected_rows(z):
    mean = z.clone()
    positive = (z[:, 0] > 0).nonzero().squeeze(1)
    mean[positive] = 2 * z[positive]
    return mean


def one_by_one(z):
    return torch.stack([row if row.sum() > 0 else -row for row in z])


def normed(features, training=False):
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Linear(4, features),
        nn.BatchNorm1d(features),
        nn.Softplus(),
        nn.Linear(features, 4),
    ).double()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    return net.train(training)


def network(*layers):
    torch.manual_seed(3)
    return nn.Sequential(*layers).double().eval()


FIXED_ROWS = torch.zeros(100, 4, dtype=torch.float64)

CODES = {
    "softmax(dim=1)": lambda z: z.softmax(dim=1) * 5,
    "nn.Softmax(dim=1)": lambda z: nn.Softmax(dim=1)(z) * 5,
    "log_softmax(1)": lambda z: z.log_softmax(1),
    "F.normalize": lambda z: 2 * nn.functional.normalize(z),
    "z / z.sum(1, keepdim=True)": lambda z: z.abs() / z.abs().sum(1, keepdim=True),
    "z - z.mean(1, keepdim=True)": lambda z: z - z.mean(1, keepdim=True),
    "z.max(1)": lambda z: z.max(1, keepdim=True).values.expand(-1, 4),
    "argmax(1)": lambda z: nn.functional.one_hot(z.argmax(1), 4).double(),
    "z.sort(1)": lambda z: z.sort(1).values,
    "z.norm(dim=1)": lambda z: z / z.norm(dim=1)[:, None],
    "boolean mask": by_mask,
    "rows by nonzero": selected_rows,
    "reads each row's value": one_by_one,
    "flip(1)": lambda z: z.flip(1) ** 2,
    "roll": lambda z: z.roll(1, 1) * z,
    "cosine": lambda z: nn.functional.cosine_similarity(
        z, FIXED_ROWS[: len(z)] + 1, dim=1
    )[:, None].expand(-1, 4),
    "torch.where": lambda z: torch.where(z[:, :1] > 0, z, -z),
    "GroupNorm": network(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Linear(6, 4)),
    "Conv1d": network(
        nn.Unflatten(1, (1, 4)),
        nn.Conv1d(1, 2, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(1),
        nn.Linear(8, 4),
    ),
    "Conv2d": network(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 3, 2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 4),
    ),
    "ConvTranspose2d": network(
        nn.Unflatten(1, (4, 1, 1)), nn.ConvTranspose2d(4, 1, 2), nn.Flatten()
    ),
    "BatchNorm2d": network(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 2, 1),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(8, 4),
    ),
    "InstanceNorm1d": network(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2), nn.Flatten(), nn.Linear(4, 4)
    ),
    "Bilinear": lambda z: z[:, :2].unsqueeze(2).mul(z[:, 2:].unsqueeze(1)).flatten(1),
}


def codes(name, num_data=N):
    if name in ("GRU", "LSTM"):
        torch.manual_seed(5)
        return discrete(Recurrent(getattr(nn, name)), num_data=num_data)
    if name.startswith("BatchNorm1d"):
        features, num_data = (int(v) for v in name.split()[1:])
        return discrete(normed(features), num_data=num_data)
    return discrete(CODES[name], num_data=num_data)


BATCH_NORMS = [
    "BatchNorm1d 50 50",
    "BatchNorm1d 30 50",
    "BatchNorm1d 50 60",
    "BatchNorm1d 7 7",
    "BatchNorm1d 5 9",
]


@pytest.mark.parametrize(
    "name",
    few(
        [*CODES, "GRU", "LSTM", *BATCH_NORMS],
        "softmax(dim=1)",
        "F.normalize",
        "boolean mask",
        "reads each row's value",
        "torch.where",
        "GRU",
        "BatchNorm1d 50 50",
        "BatchNorm1d 30 50",
    ),
)
def test_functions_of_a_local_code(name):
    case = codes(name)
    check_all(case)


@pytest.mark.parametrize(
    "name",
    few(
        [
            "softmax(dim=1)",
            "F.normalize",
            "z - z.mean(1, keepdim=True)",
            "GroupNorm",
            "z.max(1)",
        ],
        "softmax(dim=1)",
        "F.normalize",
    ),
)
def test_functions_of_vectors_in_a_topic_plate(name):
    check_all(discrete(CODES[name], num_data=20, rows=3))


# Two plates
# ----------------------------------------------------------------------------------------------


def repeats(reshape, outer=-2):
    """A local z observed several times, in plates "data" and "repeats" of either order."""
    num_data, count, width = 6, 4, 3
    x = fixed(num_data, count, width)
    x = x if outer == -2 else x.transpose(0, 1).contiguous()
    mean = x.sum(-2 if outer == -2 else 0) / (count + 1.0)  # (num_data, width)
    covariance = torch.eye(count).double() + 1.0
    series = (
        x.movedim(-2, -1) if outer == -2 else x.permute(1, 2, 0)
    )  # (num_data, width, count)
    evidence = (
        dist.MultivariateNormal(torch.zeros(count).double(), covariance)
        .log_prob(series)
        .sum(-1)
    )

    def model(x, still):
        with pyro.plate("data", num_data, dim=outer):
            z = pyro.sample(
                "z", dist.Normal(torch.zeros(width).double(), 1.0).to_event(1)
            )
            with pyro.plate("repeats", count, dim=-3 - outer):
                pyro.sample(
                    "x", dist.Normal(reshape(z) + still, 1.0).to_event(1), obs=x
                )

    def guide(x):
        loc = mean.unsqueeze(1) if outer == -2 else mean
        with pyro.plate("data", num_data, dim=outer):
            pyro.sample("z", dist.Normal(loc, (count + 1.0) ** -0.5).to_event(1))

    return Exact(pair(model, guide), x, evidence, (num_data, count, width))


@pytest.mark.parametrize(
    "reshape",
    [
        lambda mu: mu.reshape(-1, 1, 3),
        pytest.param(lambda mu: mu.view(6, 1, 3), marks=pytest.mark.slow),
        lambda mu: mu.squeeze(1)[:, None],
        pytest.param(lambda mu: mu.flatten(0, 1).unsqueeze(1), marks=pytest.mark.slow),
        lambda mu: mu.expand(6, 4, 3),
        pytest.param(lambda mu: mu.repeat(1, 4, 1), marks=pytest.mark.slow),
        pytest.param(lambda mu: mu[:, [0, 0, 0, 0]], marks=pytest.mark.slow),
        lambda mu: torch.cat([mu] * 4, 1),
    ],
    ids=["reshape", "view", "squeeze", "flatten", "expand", "repeat", "index", "cat"],
)
def test_reshapes_under_two_plates(reshape):
    check_all(repeats(reshape))


def test_products_of_matrix_latents():
    """A topic model: local theta times shared beta, written for one sample."""
    num_data, topics, words = 6, 2, 5
    x = fixed(num_data, words)

    def model(x):
        beta = pyro.sample(
            "beta", dist.Normal(torch.zeros(topics, words), 1.0).to_event(2)
        )
        with pyro.plate("data", len(x)):
            theta = pyro.sample(
                "theta", dist.Normal(torch.zeros(topics), 1.0).to_event(1)
            )
            pyro.sample("x", dist.Normal(theta @ beta, 0.5).to_event(1), obs=x)

    check_replayed(
        vilvm.Pair(model, AutoNormal(model, init_scale=0.3)),
        x,
        (num_data, topics, words),
    )


def check_replayed(lvm, batch, sizes=(), auxiliary=None, scale=1.0):
    """Log-weights equal plain Pyro's at their latents, and the ELBO is the mean of Pyro's."""
    for count in sorted({5, 100, *sizes}):
        some = torch.linspace(0, count - 1, min(count, 8)).long()
        weights = vilvm.log_weights(lvm, batch, count)
        found = weights.log_weight.detach()[some]
        found = found if found.dim() == 1 else found.sum(-1)
        expected = replayed(
            lvm,
            batch,
            {n: v.detach()[some] for n, v in weights.latents.items()},
            auxiliary,
        )
        torch.testing.assert_close(
            found,
            expected,
            rtol=1e-5,
            atol=1e-4,
            msg=lambda m, c=count: f"{c} samples: {m}",
        )
    result = vilvm.evaluate(lvm, batch, num_samples=200)
    elbo = result.bounds["elbo"]
    mean, se = pyro_elbos(lvm, batch, 60, scale)
    ours, our_se = elbo.values.sum().item(), elbo.errors.square().sum().sqrt().item()
    assert abs(ours - mean) < 5 * math.hypot(se, our_se) + 1e-3


def mixture(pick, num_data=8, components=3):
    """A mixture with shared locations, indexed by drawn assignments."""
    x = fixed(num_data) * 3

    def model(x):
        with pyro.plate("components", components):
            locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(torch.ones(components) / components))
            pyro.sample("x", dist.Normal(pick(locs, a), 1.0), obs=x)

    def guide(x):
        with pyro.plate("components", components):
            pyro.sample("locs", dist.Normal(torch.tensor([-3.0, 0.0, 3.0]), 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Categorical(torch.tensor([0.5, 0.2, 0.3])))

    return vilvm.Pair(model, guide), x


@pytest.mark.parametrize(
    "pick",
    [
        lambda locs, a: Vindex(locs)[..., a],
        lambda locs, a: locs[a],
        lambda locs, a: locs.index_select(0, a),
        pytest.param(
            lambda locs, a: nn.functional.one_hot(a, 3).to(locs) @ locs,
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda locs, a: torch.gather(locs, 0, a), marks=pytest.mark.slow),
        pytest.param(
            lambda locs, a: torch.stack([locs[k] for k in a]), marks=pytest.mark.slow
        ),
    ],
    ids=["Vindex", "index", "index_select", "one_hot", "gather", "loop"],
)
def test_locations_indexed_by_assignments(pick):
    lvm, x = mixture(pick)
    check_replayed(lvm, x, (len(x), 3))


def test_branch_on_a_latent_value():
    x = fixed(6)

    def model(x):
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = z if z.mean() > 0 else 3 * z + 1
        with data:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, 0.8))

    check_replayed(vilvm.Pair(model, guide), x, (6,))


def test_latent_value_read_by_item():
    x = fixed(6)

    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale.item() + 0.1), obs=x)

    check_replayed(vilvm.Pair(model, AutoNormal(model)), x, (6,))


def test_number_of_terms_given_by_a_latent():
    """A loop whose length is drawn."""
    x = fixed(6) + 2

    def model(x):
        count = pyro.sample("count", dist.Poisson(2.0))
        mean = sum((0.5**i for i in range(int(count))), torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("count", dist.Poisson(3.0))

    check_replayed(vilvm.Pair(model, guide), x, (6,))


def test_batch_statistics_during_training():
    """Functional batch normalisation, in any mode: each sample uses its own statistics."""
    linear, x = normed(6)[0], fixed(6, 4)

    def net(z):
        return nn.functional.batch_norm(linear(z), None, None, training=True)[:, :4]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))

    lvm = vilvm.Pair(model, guide)
    for count in (5, 6, 20):
        weights = vilvm.log_weights(lvm, x, count)
        expected = replayed(lvm, x, weights.latents)
        torch.testing.assert_close(
            weights.log_weight.detach().sum(-1), expected, rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("features", [30, 50])
def test_batch_normalisation_counts_training_steps_only(features):
    """Running statistics move once per training step, and by nothing else."""

    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = normed(features, training=True)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1)
                )
                pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))

    lvm, x = Coder(), fixed(100, 4)
    result = vilvm.fit(lvm, x, steps=12, batch_size=50, validation=x)
    assert lvm.net[1].num_batches_tracked == 12
    assert len(result.history) > 0
    found = vilvm.evaluate(lvm, x, num_samples=100).bounds["elbo"]
    assert lvm.net[1].num_batches_tracked == 12
    mean, se = pyro_elbos(lvm, x, 60)
    assert abs(found.values.sum().item() - mean) < 5 * math.hypot(
        se, found.mc_se * len(x)
    )


# 3. Degenerate guides combined with proper ones
# ----------------------------------------------------------------------------------------------


def two_globals(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, tau), obs=x)


def delta_beside_normal():
    guide = AutoGuideList(two_globals)
    guide.append(AutoDelta(poutine.block(two_globals, expose=["tau"])))
    guide.append(AutoNormal(poutine.block(two_globals, expose=["mu"])))
    return guide


def delta_beside_diagonal():
    guide = AutoGuideList(two_globals)
    guide.append(AutoDiagonalNormal(poutine.block(two_globals, expose=["mu"])))
    guide.append(AutoDelta(poutine.block(two_globals, expose=["tau"])))
    return guide


def delta_of_a_parameter(x):
    pyro.sample("tau", dist.Delta(pyro.param("t", torch.tensor(1.0))))
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def delta_beside_an_auxiliary(x):
    pyro.sample("tau", dist.Delta(pyro.param("t", torch.tensor(1.0))))
    e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("mu", dist.Delta(2 * e, log_density=torch.tensor(-math.log(2.0))))


def delta_that_reads_no_auxiliary(x):
    e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("tau", dist.Delta(torch.tensor(1.5)))
    pyro.sample("mu", dist.Normal(e, 1.0)) if False else pyro.sample(
        "mu", dist.Delta(e)
    )


@pytest.mark.parametrize(
    "guide",
    [
        delta_beside_normal,
        delta_beside_diagonal,
        lambda: delta_of_a_parameter,
        lambda: delta_beside_an_auxiliary,
        lambda: delta_that_reads_no_auxiliary,
    ],
    ids=[
        "AutoGuideList",
        "AutoGuideList, diagonal",
        "no auxiliary",
        "auxiliary beside",
        "auxiliary not read",
    ],
)
def test_one_degenerate_latent_leaves_no_bound(guide):
    lvm, x = vilvm.Pair(two_globals, guide()), fixed(10)
    with pytest.raises((vilvm.ContractError, KeyError), match="'tau'"):
        _ = vilvm.evaluate(lvm, x, num_samples=20).bounds["elbo"]
    with pytest.raises(vilvm.ContractError, match="'tau'"):
        vilvm.resample(lvm, x, 3, proposals=5)


def test_delta_of_an_auxiliary_draw_has_a_density():
    x = fixed(10)
    check_replayed(vilvm.Pair(two_globals, AutoDiagonalNormal(two_globals)), x, (10,))
    check_replayed(vilvm.Pair(two_globals, AutoNormal(two_globals)), x, (10,))
    check_replayed(
        vilvm.Pair(two_globals, AutoMultivariateNormal(two_globals)), x, (10, 2)
    )


# 4. Masked latents
# ----------------------------------------------------------------------------------------------

SEEN = torch.tensor([True, False, True, True, False, True])


def partly_seen(masked=False, width=None):
    """z ~ N(0, 1), x ~ N(z, 1) partly observed; the guide is the posterior, and draws the rest."""
    x = fixed(*(6,) if width is None else (6, width))
    events = 0 if width is None else 1
    counts = 1 if width is None else width
    total = x if width is None else x.sum(-1)
    evidence = dist.MultivariateNormal(
        torch.zeros(counts).double(), torch.eye(counts).double() + 1
    ).log_prob(x.reshape(6, -1))
    evidence = torch.where(SEEN, evidence, 0.0)
    loc = torch.where(SEEN, total / (counts + 1), 0.0)
    scale = torch.where(SEEN, torch.tensor((counts + 1.0) ** -0.5), torch.tensor(1.0))

    def noise(z):
        return (
            dist.Normal(z, 1.0)
            if width is None
            else dist.Normal(z.unsqueeze(-1).expand(*z.shape, width), 1.0).to_event(1)
        )

    def model(x, still):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0 + still, 1.0))
            pyro.sample("x", noise(z), obs=x, obs_mask=SEEN)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, scale))
            with poutine.mask(mask=~SEEN if masked else True):
                pyro.sample("x_unobserved", noise(z))

    assert events in (0, 1)
    return Exact(pair(model, guide), x, evidence, (6,))


def sequence(mask_model, mask_guide, by):
    """Random walks of several lengths; latents after the end of a walk are masked."""
    lengths, steps = torch.tensor([3, 1, 2, 3, 1]), 3
    num_data = len(lengths)
    x = fixed(num_data, steps)
    evidence = torch.stack(
        [
            dist.Normal(0.0, 2**0.5).log_prob(x[i, : lengths[i]]).sum()
            for i in range(num_data)
        ]
    )

    def masked(fn, t, on):
        return fn.mask(t < lengths) if on and by == "dist" else fn

    def around(t, on):
        return poutine.mask(mask=(t < lengths) if on and by == "poutine" else True)

    def model(x, still):
        with pyro.plate("data", num_data):
            for t in range(steps):
                with around(t, mask_model):
                    z = pyro.sample(
                        f"z_{t}", masked(dist.Normal(still, 1.0), t, mask_model)
                    )
                with poutine.mask(mask=t < lengths):
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x):
        with pyro.plate("data", num_data):
            for t in range(steps):
                seen = t < lengths
                loc = x[:, t] / 2 if mask_model else torch.where(seen, x[:, t] / 2, 0.0)
                scale = 0.5**0.5 if mask_model else torch.where(seen, 0.5**0.5, 1.0)
                with around(t, mask_guide):
                    pyro.sample(
                        f"z_{t}", masked(dist.Normal(loc, scale), t, mask_guide)
                    )

    return Exact(pair(model, guide), x, evidence, (num_data, steps))


MASKED = {
    "obs_mask": lambda: partly_seen(),
    "obs_mask, masked alike": lambda: partly_seen(masked=True),
    "obs_mask, vectors": lambda: partly_seen(width=3),
    "obs_mask, vectors, masked alike": lambda: partly_seen(masked=True, width=3),
    "lengths, both masked": lambda: sequence(True, True, "poutine"),
    "lengths, model masked": lambda: sequence(True, False, "poutine"),
    "lengths, neither masked": lambda: sequence(False, False, "poutine"),
    "lengths, .mask of both": lambda: sequence(True, True, "dist"),
    "lengths, .mask of the model": lambda: sequence(True, False, "dist"),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_latents_are_marginalised(name):
    case = MASKED[name]()
    check_log_weights(case)
    check_evaluate(case)


@pytest.mark.parametrize("name", MASKED)
def test_training_history_with_masked_latents(name):
    """Recorded rate and distortion are those of the marginal; the objective's ELBO is Pyro's."""
    case = MASKED[name]()
    history = vilvm.fit(
        case.lvm, case.batch, steps=2, optimizer=STILL, validation=case.batch
    ).history
    assert -(history["rate"] + history["distortion"]) == pytest.approx(
        case.evidence.mean().item(), abs=1e-4
    )
    assert history["validation_elbo"] == pytest.approx(
        case.evidence.mean().item(), abs=1e-4
    )


@pytest.mark.parametrize("by", ["poutine", "dist"])
def test_guide_only_masks_are_exact_or_refused(by):
    case = sequence(False, True, by)
    try:
        vilvm.log_weights(case.lvm, case.batch, 5)
    except vilvm.ContractError as error:
        assert "mask" in str(error)  # noqa: PT017
    else:
        check_log_weights(case)


def seen_in_part(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=SEEN)


def joint_seen_in_part(x, mu, filled):
    """log p(mu, x), shape (S,); observed entries of `filled` are not variables."""
    every = torch.where(SEEN, x, filled.double())
    return dist.Normal(0.0, 1.0).log_prob(mu.double()) + dist.Normal(
        mu.double()[:, None], 1.0
    ).log_prob(every).sum(-1)


def evidence_seen_in_part(x):
    seen = x[SEEN]
    covariance = torch.eye(len(seen)).double() + 1.0
    return (
        dist.MultivariateNormal(torch.zeros(len(seen)).double(), covariance)
        .log_prob(seen)
        .item()
    )


def test_obs_mask_under_auto_normal():
    """The guide draws observed entries, but its density excludes them."""
    x = fixed(6)
    lvm = vilvm.Pair(seen_in_part, AutoNormal(seen_in_part, init_scale=0.4))
    check_seen_in_part(lvm, x)
    vilvm.fit(lvm, x, steps=40, optimizer=partial(torch.optim.Adam, lr=0.05))
    check_seen_in_part(lvm, x)


def check_seen_in_part(lvm, x):
    for count in (5, 6, 100):
        weights = vilvm.log_weights(lvm, x, count)
        mu, filled = (weights.latents[n].detach() for n in ("mu", "x_unobserved"))
        locs, scales = lvm.guide.locs, lvm.guide.scales
        log_q = dist.Normal(locs.mu, scales.mu).log_prob(mu)
        log_q = log_q + (
            dist.Normal(locs.x_unobserved, scales.x_unobserved).log_prob(filled) * ~SEEN
        ).sum(-1)
        expected = (joint_seen_in_part(x, mu, filled) - log_q).detach()
        found = weights.log_weight.detach()
        torch.testing.assert_close(
            found if found.dim() == 1 else found.sum(-1),
            expected.double(),
            rtol=1e-5,
            atol=1e-4,
        )
    result = vilvm.evaluate(lvm, x, num_samples=1000)
    evidence = evidence_seen_in_part(x)
    for bound in result.bounds.values():
        assert (
            bound.values.sum().item()
            < evidence + 5 * bound.errors.square().sum().sqrt().item() + 1e-3
        )
    assert result.rate.values.sum().item() > -1e-3


@pytest.mark.parametrize("auto", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_obs_mask_under_joint_autoguide_exact_or_refused(auto):
    """One vector also holds observed entries: the result is exact, or the pair is refused."""
    x = fixed(6)
    lvm = vilvm.Pair(seen_in_part, auto(seen_in_part, init_scale=0.6))
    try:
        weights = vilvm.log_weights(lvm, x, 50)
    except vilvm.ContractError as error:
        assert "mask" in str(error)  # noqa: PT017
        return
    mu, filled = (weights.latents[n].detach() for n in ("mu", "x_unobserved"))
    q = lvm.guide.get_posterior()
    kept = torch.cat([torch.tensor([True]), ~SEEN])
    vector = torch.cat([mu[:, None], filled], -1).float()
    loc, covariance = lvm.guide.loc, getattr(q, "covariance_matrix", None)
    covariance = torch.diag(q.variance) if covariance is None else covariance
    marginal = dist.MultivariateNormal(loc[kept], covariance[kept][:, kept]).log_prob(
        vector[:, kept]
    )
    whole = dist.MultivariateNormal(loc, covariance).log_prob(vector)
    conditional = (dist.Normal(mu[:, None], 1.0).log_prob(filled) * SEEN).sum(-1)
    found = weights.log_weight.detach()
    found = found if found.dim() == 1 else found.sum(-1)
    joint = joint_seen_in_part(x, mu, filled)
    right = [(joint - marginal).detach(), (joint + conditional - whole).detach()]
    assert any(torch.allclose(found, r.double(), rtol=1e-5, atol=1e-4) for r in right)


# 5. Factors in the guide
# ----------------------------------------------------------------------------------------------


def flow(kind):
    """z | x is a map of standard normal noise, whose Jacobian is a factor."""
    x = fixed(6)
    scale, loc = 0.5**0.5, x / 2
    jacobian = torch.tensor(-math.log(scale)).double()

    def model(x, still):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0 + still, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            e = pyro.sample(
                "e",
                dist.Normal(torch.zeros(len(x)).double(), 1.0),
                infer={"is_auxiliary": True},
            )
            z = loc + scale * e
            if kind == "in log_density":
                pyro.sample("z", dist.Delta(z, log_density=jacobian))
                return
            pyro.sample("z", dist.Delta(z))
            if kind == "in the plate":
                pyro.factor("jacobian", jacobian.expand(len(x)), has_rsample=True)
            elif kind == "has_rsample=False":
                pyro.factor("jacobian", jacobian.expand(len(x)), has_rsample=False)
            elif kind == "of size one":
                pyro.factor("jacobian", jacobian, has_rsample=True)
            elif kind == "two factors":
                pyro.factor("half", jacobian / 2 + e - e, has_rsample=True)
                pyro.factor("other", jacobian / 2 - e + e, has_rsample=True)
            elif kind == "of the draw":
                pyro.factor(
                    "jacobian", torch.log(e.exp() / (scale * e.exp())), has_rsample=True
                )

    return Exact(pair(model, guide), x, dist.Normal(0.0, 2**0.5).log_prob(x), (6,))


@pytest.mark.parametrize(
    "kind",
    [
        "in the plate",
        "in log_density",
        "has_rsample=False",
        "of size one",
        "two factors",
        "of the draw",
    ],
)
def test_guide_factors_enter_the_weights(kind):
    check_all(flow(kind))


def test_guide_factor_outside_the_plate_enters_the_weights():
    x = fixed(6)
    scale = 0.5**0.5

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            e = pyro.sample(
                "e",
                dist.Normal(torch.zeros(len(x)).double(), 1.0),
                infer={"is_auxiliary": True},
            )
            pyro.sample("z", dist.Delta(x / 2 + scale * e))
        pyro.factor("jacobian", torch.tensor(-6 * math.log(scale)), has_rsample=True)

    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()
    for count in (5, 6, 100):
        found = vilvm.log_weights(vilvm.Pair(model, guide), x, count).log_weight
        found = found if found.dim() == 1 else found.sum(-1)
        assert found.tolist() == pytest.approx([evidence] * count, abs=1e-4)
        bound = vilvm.evaluate(vilvm.Pair(model, guide), x, num_samples=count).bounds[
            "elbo"
        ]
        assert bound.values.sum().item() == pytest.approx(evidence, abs=1e-4)


# 6. Auxiliary variables whose latent is no Delta
# ----------------------------------------------------------------------------------------------


def discrete_auxiliary(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample(
            "k",
            dist.Categorical(torch.tensor([0.3, 0.7])),
            infer={"is_auxiliary": True},
        )
        pyro.sample("z", dist.Normal(x / 2 + torch.tensor([-0.5, 0.5])[k], 0.6))


def continuous_auxiliary(x):
    with pyro.plate("data", len(x)):
        e = pyro.sample(
            "e", dist.Normal(torch.zeros(len(x)), 30.0), infer={"is_auxiliary": True}
        )
        pyro.sample("z", dist.Normal(x / 2 + e / 100, 0.6))


def shared_auxiliary(x):
    e = pyro.sample(
        "e", dist.Normal(torch.tensor(0.0), 3000.0), infer={"is_auxiliary": True}
    )
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + e / 10_000, 0.6))


def auxiliary_behind_a_delta(x):
    with pyro.plate("data", len(x)):
        e = pyro.sample(
            "e", dist.Normal(torch.zeros(len(x)), 30.0), infer={"is_auxiliary": True}
        )
        f = pyro.sample(
            "f", dist.Normal(x / 2 + e / 100, 0.6), infer={"is_auxiliary": True}
        )
        pyro.sample("z", dist.Delta(f))


def auxiliary_not_read(x):
    with pyro.plate("data", len(x)):
        pyro.sample(
            "e", dist.Normal(torch.zeros(len(x)), 30.0), infer={"is_auxiliary": True}
        )
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def auxiliary_many_to_one(x):
    with pyro.plate("data", len(x)):
        e = pyro.sample(
            "e", dist.Normal(torch.zeros(len(x)), 30.0), infer={"is_auxiliary": True}
        )
        f = pyro.sample("f", dist.Normal(x / 2, 0.5), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(e / 100 + f))


@pytest.mark.parametrize(
    "guide",
    [
        discrete_auxiliary,
        continuous_auxiliary,
        shared_auxiliary,
        auxiliary_behind_a_delta,
        auxiliary_not_read,
        auxiliary_many_to_one,
    ],
)
def test_auxiliary_variables_are_exact_or_refused(guide):
    """No importance-weighted bound is above log p(x), and no rate below zero."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = fixed(6)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x)
    try:
        result = vilvm.evaluate(vilvm.Pair(model, guide), x, num_samples=2000)
        elbo = result.bounds["elbo"]
    except (vilvm.ContractError, KeyError) as error:
        assert any(name in str(error) for name in ("'e'", "'k'", "'f'", "'z'"))  # noqa: PT017
        return
    assert ((elbo.values - evidence) < 5 * elbo.errors + 1e-4).all()
    assert (
        (result.bounds["iwae"].values - evidence)
        < 5 * result.bounds["iwae"].errors + 1e-4
    ).all()
    assert (result.rate.values > -5 * result.rate.errors).all()


# 7. Data along another axis than the batch's first
# ----------------------------------------------------------------------------------------------


def time_major(steps, series, first=True, pack=None):
    """Series with one latent each, time along the first axis, or the last unless `first`."""
    x = fixed(steps, series)
    covariance = torch.eye(steps).double() + 1.0
    evidence = dist.MultivariateNormal(
        torch.zeros(steps).double(), covariance
    ).log_prob(x.T)
    batch = x if first else x.T.contiguous()
    if pack is not None:
        batch = pack(x)

    def of(batch):
        if pack is None:
            x = batch
        else:
            x = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        return x if first else x.T

    def model(batch, still):
        x = of(batch)
        with pyro.plate("series", x.shape[1]):
            z = pyro.sample("z", dist.Normal(0.0 + still, 1.0))
            for t in range(x.shape[0]):
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])

    def guide(batch):
        x = of(batch)
        count = x.shape[0] + 1.0
        with pyro.plate("series", x.shape[1]):
            pyro.sample("z", dist.Normal(x.sum(0) / count, count**-0.5))

    return Exact(pair(model, guide), batch, evidence, (steps, series))


TIME_MAJOR = {
    "longer than evaluate's batch": lambda: time_major(60, 5),
    "square": lambda: time_major(60, 60),
    "short": lambda: time_major(6, 4),
    "more series than steps": lambda: time_major(5, 60),
    "in a dict": lambda: time_major(60, 5, pack=lambda x: {"x": x}),
    "in a tuple": lambda: time_major(60, 5, pack=lambda x: (x, torch.arange(60))),
    "datum-major": lambda: time_major(5, 60, first=False),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n.startswith("in a dict") else n
        for n in TIME_MAJOR
    ],
)
def test_time_major_data(name):
    case = TIME_MAJOR[name]()
    total = case.evidence.sum().item()
    for count in {7, *case.sizes}:
        found = vilvm.log_weights(case.lvm, case.batch, count).log_weight.detach()
        found = found if found.dim() == 1 else found.sum(-1)
        assert found.tolist() == pytest.approx([total] * count, rel=1e-5)
    bounds = vilvm.evaluate(case.lvm, case.batch, num_samples=5).bounds
    assert bounds["elbo"].values.sum().item() == pytest.approx(total, rel=1e-5)
    assert bounds["iwae"].values.sum().item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", [n for n in TIME_MAJOR if n != "datum-major"])
def test_training_on_shuffled_time_steps_is_refused(name):
    """A batch of time steps is refused, or all are taken at once."""
    case = TIME_MAJOR[name]()
    try:
        history = vilvm.fit(
            case.lvm, case.batch, steps=4, batch_size=3, optimizer=STILL
        ).history
    except (vilvm.ContractError, ValueError) as error:
        assert "batch" in str(error)  # noqa: PT017
        return
    exact = [case.evidence.mean().item(), case.evidence.sum().item()]
    assert any(history["elbo"] == pytest.approx(e, rel=1e-5) for e in exact)


# 11. Plates without a size
# ----------------------------------------------------------------------------------------------


def unsized(kind):
    num_data = 6
    x = fixed(num_data)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x)
    where = {"model only": ("model",), "guide only": ("guide",)}.get(
        kind, ("model", "guide")
    )

    def plate(half):
        return pyro.plate("data") if half in where else pyro.plate("data", num_data)

    def model(x, still):
        if kind == "vectors":
            with plate("model"):
                z = pyro.sample(
                    "z",
                    dist.Normal(
                        torch.zeros(num_data, 2).double() + still, 1.0
                    ).to_event(1),
                )
                pyro.sample(
                    "x",
                    dist.Normal(z, 1.0).to_event(1),
                    obs=x.unsqueeze(-1).expand(-1, 2),
                )
        elif kind == "two observations":
            with plate("model"):
                z = pyro.sample(
                    "z",
                    dist.Normal(
                        torch.zeros(num_data, 2).double() + still, 1.0
                    ).to_event(1),
                )
                pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
                pyro.sample("y", dist.Normal(z[..., 1], 1.0), obs=x)
        else:
            with plate("model"):
                z = pyro.sample(
                    "z", dist.Normal(torch.zeros(num_data).double() + still, 1.0)
                )
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with plate("guide"):
            if kind in ("vectors", "two observations"):
                pyro.sample(
                    "z",
                    dist.Normal((x / 2).unsqueeze(-1).expand(-1, 2), 0.5**0.5).to_event(
                        1
                    ),
                )
            else:
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    evidence = 2 * evidence if kind in ("vectors", "two observations") else evidence
    return Exact(pair(model, guide), x, evidence, (num_data,))


@pytest.mark.parametrize(
    "kind", ["both", "model only", "guide only", "vectors", "two observations"]
)
def test_plates_without_a_size(kind):
    check_all(unsized(kind))


def test_training_with_an_unsized_plate_raises_the_bound():
    """The optimum is known: the guide's mean x / 2 and variance 1 / 2."""
    x = fixed(20).float()

    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope, scale = (
            pyro.param("slope", torch.tensor(0.0)),
            pyro.param("scale", torch.tensor(1.0), dist.constraints.positive),
        )
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(slope * x, scale))

    lvm = vilvm.Pair(model, guide)
    result = vilvm.fit(lvm, x, steps=150, optimizer=partial(torch.optim.Adam, lr=0.05))
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    assert vilvm.evaluate(lvm, x, num_samples=500).bounds["elbo"].mean == pytest.approx(
        evidence, abs=0.03
    )
    assert result.history["elbo"][-1] == pytest.approx(evidence, abs=0.15)


def test_mini_batches_with_an_unsized_plate():
    """Batches of five of twenty data: the loss is per datum."""
    x = fixed(20)

    def model(x, still):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double() + still, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    history = vilvm.fit(
        pair(model, guide), x, epochs=3, batch_size=5, optimizer=STILL, validation=x
    ).history
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    assert history["validation_elbo"] == pytest.approx(evidence, abs=1e-4)
    assert history["elbo"] == pytest.approx(evidence, abs=1e-4)


# Sequential plates, undeclared dimensions, noise of torch's own
# ----------------------------------------------------------------------------------------------


def sequential(kind):
    num_data = 5
    x = fixed(num_data)

    def model(x, still):
        for i in pyro.plate("data", len(x)) if kind != "range" else range(len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0 + still, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", len(x)) if kind == "plates" else range(len(x)):
            pyro.sample(f"z_{i}", dist.Normal(x[i] / 2, 0.5**0.5))

    return Exact(
        pair(model, guide), x, dist.Normal(0.0, 2**0.5).log_prob(x).sum(), (num_data,)
    )


@pytest.mark.parametrize("kind", ["plates", "plate in the model", "range"])
def test_sequential_plates(kind):
    case = sequential(kind)
    total = case.evidence.item()
    for count in (5, 100):
        found = vilvm.log_weights(case.lvm, case.batch, count).log_weight.detach()
        assert (found if found.dim() == 1 else found.sum(-1)).tolist() == pytest.approx(
            [total] * count, rel=1e-5
        )
        bound = vilvm.evaluate(case.lvm, case.batch, num_samples=count).bounds["elbo"]
        assert bound.values.sum().item() == pytest.approx(total, rel=1e-5)
    history = vilvm.fit(case.lvm, case.batch, steps=2, optimizer=STILL).history
    assert -(history["rate"] + history["distortion"]) == pytest.approx(total, rel=1e-5)


def undeclared(kind):
    """No plate declares the dimension right of the data plate; to Pyro it is part of a datum."""
    num_data, width = 6, 3
    x = fixed(num_data, width)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).sum(-1)

    def model(x, still):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample(
                "z", dist.Normal(torch.zeros(num_data, width).double() + still, 1.0)
            )
            if kind == "latent only":
                with pyro.plate("parts", width, dim=-1):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            else:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            if kind == "declared in the guide":
                with pyro.plate("parts", width, dim=-1):
                    pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            else:
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    return Exact(pair(model, guide), x, evidence, (num_data, width))


@pytest.mark.parametrize("kind", ["both", "latent only", "declared in the guide"])
def test_undeclared_dimension_right_of_a_plate(kind):
    check_all(undeclared(kind))


@pytest.mark.parametrize("where", ["guide", "model", "both"])
def test_noise_from_torch_differs_between_samples(where):
    """z ~ N(x/2 + τ e, s), x ~ N(z + τ e', 1), with e and e' by torch.randn: the exact ELBO."""
    x, scale, tau = fixed(6), 0.6, 0.8

    def model(x):
        noise = tau * torch.randn(len(x)) if where != "guide" else 0.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + noise, 1.0), obs=x)

    def guide(x):
        noise = tau * torch.randn_like(x) if where != "model" else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + noise, scale))

    spread = scale**2 + (tau**2 if where != "model" else 0.0)
    residual = x.square() / 4 + spread + (tau**2 if where != "guide" else 0.0)
    expected = (
        -math.log(2 * math.pi)
        - (x.square() / 4 + spread) / 2
        - residual / 2
        + dist.Normal(0.0, scale).entropy()
    )
    lvm = vilvm.Pair(model, guide)
    result = vilvm.evaluate(lvm, x, num_samples=1000).bounds["elbo"]
    assert ((result.values - expected).abs() < 5 * result.errors).all()
    for count in (5, 6):
        found = torch.cat(
            [vilvm.log_weights(lvm, x, count).log_weight.sum(-1) for _ in range(12)]
        ).detach()
        assert abs(found.mean() - expected.sum()) < 5 * found.std() / len(found) ** 0.5


def test_functional_dropout_is_mapped_with_new_draws(capsys):
    """z ~ N(x/2, s), x ~ N(dropout(z), 1): the ELBO in closed form.

    The functional dropout has no evaluation mode.
    """
    x, scale, rate = fixed(6), 0.6, 0.3

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(torch.nn.functional.dropout(z, rate), 1.0), obs=x
            )

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    square = x.square() / 4 + scale**2
    residual = x.square() - x * x + square / (1 - rate)
    expected = (
        -math.log(2 * math.pi)
        - square / 2
        - residual / 2
        + dist.Normal(0.0, scale).entropy()
    )
    result = vilvm.evaluate(vilvm.Pair(model, guide), x, num_samples=2000).bounds[
        "elbo"
    ]
    assert ((result.values - expected).abs() < 5 * result.errors).all()
    printed = capsys.readouterr().out
    assert "vmap" in printed
    assert "one by one" not in printed


def test_fit_history_agrees_with_its_loss():
    """A softmax over words along a dimension counted from the left, under a plate of topics."""
    topics, words, num_data = 3, 4, 30
    x = dist.Multinomial(20, torch.tensor([0.1, 0.2, 0.3, 0.4])).sample((num_data,))
    topic = torch.arange(num_data) % topics

    def model(x):
        with pyro.plate("topics", topics):
            beta = pyro.sample("beta", dist.Normal(torch.zeros(words), 1.0).to_event(1))
        probabilities = beta.softmax(dim=1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Multinomial(20, probabilities[topic]), obs=x)

    lvm = vilvm.Pair(model, AutoNormal(model, init_scale=0.01))
    history = vilvm.fit(
        lvm, x, steps=50, optimizer=partial(torch.optim.Adam, lr=0.001)
    ).history
    # The guide hardly moves in fifty small steps and its noise is small, so that the two agree to
    # some nats of hundreds.
    assert -(history["rate"] + history["distortion"]) == pytest.approx(
        history["elbo"], rel=0.05
    )
    check_replayed(lvm, x, (topics, words, num_data))


# The pairs themselves
# ----------------------------------------------------------------------------------------------

EVERY = {
    **{f"local {n}": partial(gaussian, *LOCAL[n], num_data=N) for n in LOCAL},
    **{f"shared {n}": partial(shared_gaussian, *SHARED[n], num_data=N) for n in SHARED},
    **{f"code {n}": partial(codes, n) for n in [*CODES, "GRU", "LSTM", *BATCH_NORMS]},
    **{
        f"topics {n}": partial(discrete, CODES[n], num_data=20, rows=3)
        for n in ("softmax(dim=1)", "GroupNorm", "z.max(1)")
    },
    **{
        f"repeats {i}": partial(repeats, r)
        for i, r in enumerate(
            [lambda mu: mu.reshape(-1, 1, 3), lambda mu: mu.expand(6, 4, 3)]
        )
    },
    **{f"masked {n}": MASKED[n] for n in MASKED},
    **{
        f"flow {k}": partial(flow, k)
        for k in (
            "in the plate",
            "in log_density",
            "of size one",
            "two factors",
            "of the draw",
        )
    },
    **{f"time {n}": TIME_MAJOR[n] for n in TIME_MAJOR},
    **{
        f"unsized {k}": partial(unsized, k)
        for k in ("both", "model only", "guide only", "vectors", "two observations")
    },
    **{
        f"sequential {k}": partial(sequential, k)
        for k in ("plates", "plate in the model", "range")
    },
    **{
        f"undeclared {k}": partial(undeclared, k)
        for k in ("both", "latent only", "declared in the guide")
    },
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.filterwarnings("ignore:Found plate statements in guide but not model")
def test_plain_pyro_gives_the_exact_value(name):
    """log p − log q by plain Pyro equals log p(x) at any draw, as the tests above assume."""
    case = EVERY[name]()
    total = case.evidence.sum().item()
    assert plain_log_weight(case.lvm, case.batch) == pytest.approx(
        total, rel=1e-5, abs=1e-4
    )
    # Pyro's loss counts the guide's density of entries that the model masks
    if not name.startswith("masked"):
        mean, se = pyro_elbos(case.lvm, case.batch, 3)
        assert mean == pytest.approx(total, rel=1e-5, abs=1e-4)
        assert se < 1e-3
