"""Guides with parameters per datum are recognised, refused if wrong, and exact with indices.

In every test zₙ ~ N(0, 1) and xₙ | zₙ ~ N(zₙ, 1), so log p(xₙ) = log N(xₙ; 0, 2) and zₙ | xₙ ~
N(xₙ / 2, ½). A normal guide can represent this posterior, so the ELBO of each datum can reach its
evidence.
"""

import copy
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_mean

import vilvm
from vilvm.lvm import ContractError, NotApplicable
from vilvm.priors.fitted import FittedPrior
from vilvm.weights import find_layout
from vilvm.weights._per_datum import by_position
from vilvm.weights.generated_quantities import replay
from vilvm.wrappers import with_guide, with_prior
from vilvm.wrappers.partly_observed import partly_observed

N = 60
REFUSED = "serves data by their position.*amortised guide"
OTHERS = "has parameters per datum"


@pytest.fixture
def x():
    return torch.randn(N) * 2**0.5


def evidence(x):
    return dist.Normal(0.0, 2**0.5).log_prob(x)


def adam(rate, decay=0.995):
    return {
        "optimizer": lambda p: torch.optim.Adam(p, lr=rate),
        "scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, decay),
    }


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def indexed(batch):
    x, index = batch
    with pyro.plate("data", N, subsample=index):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def two_latents(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + u, 1.0), obs=x)


def nested(x):
    """x of shape (num_data, 3): three latents per datum, in a plate of their own."""
    with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def with_a_mean(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample=x):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plates(batch):
    return pyro.plate("data", N, subsample=batch[1])


def own_parameters(size, mixed=False):
    """A guide with `size` means and scales, one per datum; if `mixed`, a mean sums two of them."""

    def guide(x):
        loc = pyro.param("loc", torch.zeros(size))
        scale = pyro.param(
            "scale", torch.ones(size), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(loc + 0.5 * loc.roll(1) if mixed else loc, scale)
            )

    return guide


def composed(x):
    guide = AutoGuideList(two_latents)
    guide.append(AutoNormal(poutine.block(two_latents, expose=["z"])))
    guide.append(AutoDelta(poutine.block(two_latents, expose=["u"])))
    return guide


class Amortised(torch.nn.Module):
    """An encoder with a layer size equal to the number of data."""

    def __init__(self, hidden, batch_norm=False):
        super().__init__()
        between = torch.nn.BatchNorm1d(hidden) if batch_norm else torch.nn.ReLU()
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(1, hidden), between, torch.nn.Linear(hidden, 1)
        )
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def model(self, x):
        model(x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(self.encoder(x[:, None])[:, 0], self.log_scale.exp())
            )


class Embedded(torch.nn.Module):
    """A guide whose parameters are selected by an index in the batch.

    The plate has the batch's size, or the full one.
    """

    def __init__(self, full=False):
        super().__init__()
        self.full, self.loc, self.log_scale = (
            full,
            torch.nn.Embedding(N, 1),
            torch.nn.Parameter(torch.zeros(N)),
        )
        torch.nn.init.zeros_(self.loc.weight)

    def plate(self, batch):
        return plates(batch) if self.full else pyro.plate("data", len(batch[0]))

    def model(self, batch):
        with self.plate(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch[0])

    def guide(self, batch):
        with self.plate(batch):
            pyro.sample(
                "z",
                dist.Normal(self.loc(batch[1])[:, 0], self.log_scale[batch[1]].exp()),
            )


class ByCategory(torch.nn.Module):
    """An amortised guide that reads a table at a drawn cluster and at the sign of x."""

    def __init__(self):
        super().__init__()
        self.logits, self.table = (
            torch.nn.Parameter(torch.zeros(2, 9)),
            torch.nn.Parameter(torch.zeros(9, 2)),
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(torch.ones(9) / 9))
            z = pyro.sample("z", dist.Normal(cluster / 9.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        sign = (x > 0).long()
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Categorical(logits=self.logits[sign]))
            pyro.sample("z", dist.Normal(self.table[cluster, sign], 1.0))


def noisy(x):
    """A guide that draws noise outside its sites."""
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * torch.nn.functional.dropout(x, 0.5), 1.0))


def pooled(x):
    """A guide that depends on the whole batch, but not on its order."""
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * (x - x.mean()), 1.0))


BY_POSITION = {
    "AutoNormal": lambda: vilvm.Pair(model, AutoNormal(model)),
    "AutoDelta": lambda: vilvm.Pair(model, AutoDelta(model)),
    "AutoDiagonalNormal": lambda: vilvm.Pair(model, AutoDiagonalNormal(model)),
    "AutoMultivariateNormal": lambda: vilvm.Pair(model, AutoMultivariateNormal(model)),
    "AutoLowRankMultivariateNormal": lambda: vilvm.Pair(
        model, AutoLowRankMultivariateNormal(model)
    ),
    "AutoNormal behind a lambda": lambda: vilvm.Pair(
        model, (lambda guide: lambda x: guide(x))(AutoNormal(model))
    ),
    "an AutoGuideList": lambda: vilvm.Pair(two_latents, composed(None)),
    "parameters by hand, of the batch's size": lambda: vilvm.Pair(
        model, own_parameters(20)
    ),
    "parameters by hand, of all data": lambda: vilvm.Pair(model, own_parameters(N)),
    "parameters that are mixed": lambda: vilvm.Pair(
        model, own_parameters(20, mixed=True)
    ),
    "a full plate, and the guide unaware of it": lambda: vilvm.Pair(
        with_a_mean, AutoNormal(with_a_mean)
    ),
}

AMORTISED = {
    "hidden units as many as a batch": lambda: Amortised(20),
    "hidden units as many as all data": lambda: Amortised(N),
    "batch normalisation": lambda: Amortised(20, batch_norm=True),
    "a table read at a discrete latent": ByCategory,
    "noise of its own": lambda: vilvm.Pair(model, noisy),
    "a look at the whole batch": lambda: vilvm.Pair(model, pooled),
}


@pytest.mark.parametrize("name", BY_POSITION)
def test_parameters_per_datum_are_refused_in_batches(name, x):
    lvm = BY_POSITION[name]()
    with pytest.raises(ContractError, match=f"{REFUSED}|create_plates"):
        vilvm.fit(lvm, x, steps=2, batch_size=20)


def test_parameters_in_nested_plates_are_refused_in_batches():
    lvm = vilvm.Pair(nested, AutoNormal(nested))
    with pytest.raises(ContractError, match=REFUSED):
        vilvm.fit(lvm, torch.randn(N, 3), steps=2, batch_size=20)


def test_full_data_fit_works_after_a_refusal(x):
    lvm = vilvm.Pair(model, AutoNormal(model))
    with pytest.raises(ContractError, match=REFUSED):
        vilvm.fit(lvm, x, steps=1, batch_size=20)
    vilvm.fit(lvm, x, steps=300, **adam(0.1, decay=0.985))
    found = vilvm.evaluate(lvm, x, num_samples=400).bounds["elbo"]
    assert ((found.values - evidence(x)).abs() < 0.01 + 4 * found.errors).all()


@pytest.mark.parametrize("name", AMORTISED)
def test_amortised_guides_train_in_batches(name, x):
    lvm = AMORTISED[name]()
    assert by_position(lvm, x[:20], find_layout(lvm, x[:20])) is None
    assert vilvm.fit(lvm, x, steps=4, batch_size=20).steps == 4
    vilvm.posterior(lvm, torch.randn(N), 3)  # of other data


def indexed_autoguide():
    return vilvm.Pair(indexed, AutoNormal(indexed, create_plates=plates))


def by_hand(batch):
    """A guide whose parameters Pyro selects by the plate's indices, because of ``event_dim``."""
    with plates(batch):
        loc = pyro.param("loc", torch.zeros(N), event_dim=0)
        scale = pyro.param(
            "scale", torch.ones(N), constraint=dist.constraints.positive, event_dim=0
        )
        pyro.sample("z", dist.Normal(loc, scale))


def indexed_list():
    guide = AutoGuideList(indexed, create_plates=plates)
    guide.append(AutoNormal(indexed))
    return vilvm.Pair(indexed, guide)


INDEXED = {
    "AutoNormal": indexed_autoguide,
    "AutoGuideList": indexed_list,
    "parameters by hand": lambda: vilvm.Pair(indexed, by_hand),
    "embedding": Embedded,
    "embedding, full plate": lambda: Embedded(full=True),
}


@pytest.mark.parametrize(
    "name",
    [
        n if n == "AutoNormal" else pytest.param(n, marks=pytest.mark.slow)
        for n in INDEXED
    ],
)
def test_indexed_parameters_reach_the_evidence_in_batches(name, x):
    lvm, index = INDEXED[name](), torch.arange(N)
    fitted = vilvm.fit(lvm, (x, index), steps=600, batch_size=20, **adam(0.1))
    assert fitted.steps == 600
    order = torch.randperm(N)
    for size in (7, 25, N):  # any parts, in any order
        found = vilvm.evaluate(
            lvm, (x[order], order), num_samples=400, batch_size=size
        ).bounds["elbo"]
        assert found.values.shape == (N,)
        # The noise of descent leaves KL(q ‖ p) ≈ (δ² + 2 ε²) / 2 nats, δ and ε relative errors of
        # mean and scale below 0.2.
        assert (
            (found.values - evidence(x[order])).abs() < 0.06 + 4 * found.errors
        ).all(), size
        assert abs(found.mean - evidence(x).mean().item()) < 0.02
    drawn = vilvm.posterior(lvm, (x[order][:9], order[:9]), 4000)["z"]
    assert ((drawn.mean(0) - x[order][:9] / 2).abs() < 0.3).all()


def test_loss_of_indexed_batches_is_scaled_up(x):
    lvm, index = indexed_autoguide(), torch.arange(N)
    vilvm.fit(lvm, (x, index), steps=3, batch_size=20)
    with torch.no_grad():
        lvm.guide.locs.z.copy_(x / 2)
        lvm.guide.scales.z_unconstrained.copy_(
            torch.tensor(0.5**0.5).expm1().log().expand(N)
        )
    batch = x[5:25], index[5:25]
    assert find_layout(lvm, batch).scale == 3.0
    # the exact posterior, so that every weight is the evidence
    weights = vilvm.log_weights(lvm, batch, 5).log_weight
    assert torch.allclose(weights, evidence(batch[0]).double().expand(5, 20), atol=1e-5)
    loss = pyro.infer.Trace_ELBO().loss(lvm.model, lvm.guide, batch)
    assert loss == pytest.approx(-3 * evidence(batch[0]).sum().item(), rel=1e-5)


@pytest.mark.slow
def test_compiled_training_of_an_indexed_autoguide_is_equal(x):
    ends = []
    for way in (False, True):
        torch.manual_seed(1)
        lvm = indexed_autoguide()
        vilvm.fit(
            lvm, (x, torch.arange(N)), steps=60, batch_size=20, compile=way, **adam(0.1)
        )
        ends.append(lvm.guide.locs.z.detach().clone())
    assert torch.allclose(*ends, atol=1e-4)


@pytest.mark.parametrize("rows", [20, N])
def test_autoguide_with_its_own_indices_is_refused(rows, x):
    order = torch.randperm(N)[:rows]
    lvm = vilvm.Pair(indexed, AutoNormal(indexed))
    with pytest.raises(ContractError, match="create_plates"):
        vilvm.log_weights(lvm, (x[order], order), 5)


@pytest.mark.parametrize(
    "kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoIAFNormal]
)
def test_other_rows_than_the_fitted_are_refused(kind, x):
    lvm = vilvm.Pair(model, kind(model))
    vilvm.fit(lvm, x, steps=2)
    vilvm.evaluate(lvm, x, num_samples=5)
    vilvm.posterior(lvm, x, 5)
    for other in (torch.randn(N), x.flip(0), x[:20]):
        for ask in (vilvm.evaluate, vilvm.posterior, vilvm.log_weights):
            with pytest.raises(NotApplicable, match=OTHERS):
                ask(lvm, other, num_samples=5)
    with pytest.raises(NotApplicable, match=OTHERS):
        vilvm.posterior(copy.deepcopy(lvm), x.flip(0), 5)
    with pytest.raises(NotApplicable, match=OTHERS):
        vilvm.diagnose(lvm, x.flip(0), budget=5)


def test_other_validation_rows_are_refused(x):
    lvm = vilvm.Pair(model, own_parameters(N))
    vilvm.fit(lvm, x, steps=2)
    with pytest.raises(NotApplicable, match="'loc'"):
        vilvm.log_weights(lvm, x + 1, 3)
    with pytest.raises(NotApplicable, match=OTHERS):
        vilvm.fit(vilvm.Pair(model, own_parameters(N)), x, steps=2, validation=x + 1)


def test_model_only_functions_accept_other_rows(x):
    lvm = vilvm.Pair(model, AutoNormal(model))
    vilvm.fit(lvm, x, steps=2)
    assert vilvm.sample(lvm, 7, like=x)["x"].shape == (7, N)
    schedule = vilvm.evaluation.Schedule(
        num_chains=3, num_temperatures=4, leapfrog=1, base="prior"
    )
    found = vilvm.evaluation.bdmc(lvm, schedule, num_simulations=N, like=x)
    assert found.gap.values.shape == (N,)
    assert replay(lvm, x + 1, {"z": torch.zeros(2, N)}).observed["x"].shape == (2, N)
    with pytest.raises(NotApplicable, match=OTHERS):
        vilvm.evaluation.bdmc(
            lvm, replace(schedule, base="guide"), num_simulations=N, like=x
        )


class Mine(torch.nn.Module):
    """A wrapper written by a user."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def model(self, batch):
        with poutine.scale(scale=2.0):
            self.inner.model(batch)

    def guide(self, batch):
        with poutine.scale(scale=2.0):
            self.inner.guide(batch)


def standing(lvm, kind):
    around = with_guide(lvm, torch.nn.Linear(1, 2), around=True)
    return {
        "with_prior": lambda: with_prior(
            lvm,
            FittedPrior(
                "z", "diagonal", {"mean": torch.zeros(1), "scale": torch.ones(1)}
            ),
        ),
        "partly_observed": lambda: partly_observed(lvm, torch.tensor([True])),
        "around": lambda: around,
        "twice": lambda: Mine(partly_observed(lvm, torch.tensor([True]))),
        "methods": lambda: vilvm.Pair(lvm.model, lvm.guide),
        "lambda": lambda: vilvm.Pair(lambda b: lvm.model(b), lambda b: lvm.guide(b)),
    }[kind]()


@pytest.mark.parametrize(
    "kind", ["with_prior", "partly_observed", "around", "twice", "methods", "lambda"]
)
def test_other_rows_are_refused_through_every_wrapper(kind, x):
    vectors = x[:, None]

    def of_vectors(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    lvm = vilvm.Pair(of_vectors, AutoNormal(of_vectors))
    vilvm.fit(lvm, vectors, steps=2)
    outer = standing(lvm, kind)
    vilvm.log_weights(outer, vectors, 3)
    with pytest.raises(NotApplicable, match=OTHERS):
        vilvm.log_weights(outer, vectors.flip(0), 3)
    vilvm.fit(
        outer, vectors + 1, steps=1
    )  # the shared parameters then belong to other data
    vilvm.log_weights(outer, vectors + 1, 3)
    if kind != "around":
        with pytest.raises(NotApplicable, match=OTHERS):
            vilvm.log_weights(lvm, vectors, 3)
    # Another guide of the same model serves any data.
    vilvm.log_weights(with_guide(lvm, torch.nn.Linear(1, 2)), vectors.flip(0), 3)
    vilvm.log_weights(
        vilvm.Pair(lvm.model, with_guide(lvm, torch.nn.Linear(1, 2)).guide),
        vectors.flip(0),
        3,
    )


@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal])
def test_prior_mean_start_does_not_change_prior(guide, x):
    """The parameters of ``init_to_mean`` share memory with a constant of the model."""
    constant = torch.zeros(N)

    def shared(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(constant, 1.0))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(w, 1.0), obs=x)

    made = guide(shared, init_loc_fn=init_to_mean)
    # From 0 the gradient of -log p(x, z) is -x, so that a step of length ½ ends at the mode, x /
    # 2; a step of Adam is of length lr.
    exact = guide is AutoDelta
    step = (
        (lambda p: torch.optim.SGD(p, lr=N / 2))
        if exact
        else lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-12, fused=True)
    )
    vilvm.fit(vilvm.Pair(shared, made), x, steps=1, optimizer=step)
    found = made if exact else made.locs
    assert not constant.any()
    for value in (found.z, found.w):
        assert torch.allclose(
            *((value, x / 2) if exact else (value.abs(), torch.tensor(0.1))),
            atol=1e-5,
        )


@pytest.mark.slow
def test_indexed_fit_to_reordered_rows(x):
    lvm, order = indexed_autoguide(), torch.randperm(N)
    vilvm.fit(lvm, (x[order], order), steps=900, **adam(0.1))
    for size in (25, N):
        found = vilvm.evaluate(
            lvm, (x, torch.arange(N)), num_samples=400, batch_size=size
        ).bounds["elbo"]
        assert ((found.values - evidence(x)).abs() < 0.06 + 4 * found.errors).all(), (
            size
        )


def test_new_fit_replaces_the_fitted_rows(x):
    lvm = vilvm.Pair(model, AutoNormal(model))
    vilvm.fit(lvm, x, steps=2)
    vilvm.fit(lvm, x + 1, steps=2)
    vilvm.posterior(lvm, x + 1, 5)
    with pytest.raises(NotApplicable, match=OTHERS):
        vilvm.posterior(lvm, x, 5)


def test_one_parameter_for_two_sources_is_refused(x):
    lvm = vilvm.Pair(model, AutoNormal(model))
    with pytest.raises(ContractError, match="sources"):
        vilvm.fit(lvm, vilvm.Interleaved(x, x + 1), steps=2)


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=15) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


@pytest.mark.slow
def test_self_subsampling_plate_is_trained_and_recognised(x):
    lvm = vilvm.Pair(subsampled, AutoNormal(subsampled, init_loc_fn=init_to_mean))
    vilvm.fit(lvm, x, steps=600, **adam(0.1))
    assert lvm.guide.locs.z.shape == (N,)
    weights = vilvm.log_weights(lvm, x, 400)
    assert (
        (weights.log_weight.mean(0) - evidence(x[weights.indices])).abs() < 0.1
    ).all()
    with pytest.raises(NotApplicable, match=OTHERS):
        vilvm.log_weights(lvm, x.flip(0), 5)


def test_parameters_per_datum_are_evaluated_on_whole_data(x):
    with torch.no_grad():
        lvm = vilvm.Pair(model, AutoNormal(model, init_scale=0.5**0.5))
        # the first call creates its parameters for all data
        vilvm.evaluate(lvm, x, num_samples=2, batch_size=20)
        lvm.guide.locs.z.copy_(x / 2)
    for size in (20, 59, N):
        found = (
            vilvm.evaluate(lvm, x, num_samples=5, batch_size=size).bounds["elbo"].values
        )
        assert torch.allclose(found, evidence(x).double(), atol=1e-5)


def test_by_position_changes_no_state(x):
    lvm = vilvm.Pair(model, own_parameters(N))
    layout = find_layout(lvm, x)
    loc = dict(lvm.named_parameters())["pyro_params.loc"].requires_grad_(False)
    state = torch.get_rng_state()
    found = by_position(lvm, x, layout)
    assert found is not None
    assert found.name in ("loc", "scale")
    assert found.single
    assert torch.equal(torch.get_rng_state(), state)
    assert not loc.requires_grad
    assert all(p.grad is None for p in lvm.parameters())


class Recurrent(torch.nn.Module):
    """A guide that reads the rows in sequence; its batch is one series, of any data."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = (
            torch.nn.GRU(1, N),
            torch.nn.Sequential(
                torch.nn.Linear(N, N), torch.nn.ReLU(), torch.nn.Linear(N, 1)
            ),
        )

    def model(self, x):
        model(x)

    def guide(self, x):
        read, _ = self.gru(x[:, None])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.head(read)[:, 0], 1.0))


def test_recurrent_guide_accepts_other_rows_whole(x):
    lvm = Recurrent()
    vilvm.fit(lvm, x, steps=2)
    for other in (x.flip(0), x[:20], torch.randn(N)):
        vilvm.posterior(lvm, other, 5)
    with torch.no_grad():
        mean = lvm.head(lvm.gru(x[:, None])[0])[:, 0]
    exact = evidence(x) - torch.distributions.kl_divergence(
        dist.Normal(mean, 1.0), dist.Normal(x / 2, 0.5**0.5)
    )
    # always the whole batch
    found = vilvm.evaluate(lvm, x, num_samples=4000, batch_size=20).bounds["elbo"]
    assert ((found.values - exact).abs() < 5 * found.errors).all()
    with pytest.raises(ContractError, match=REFUSED):
        vilvm.fit(Recurrent(), x, steps=2, batch_size=20)
