import sys
from collections import Counter
from functools import partial
from importlib import import_module

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.diagnostics import (
    active_units,
    collapse,
    correction,
    diagnose,
    gaps,
    gradient_snr,
    loo,
    pareto_k,
    predictive_check,
    rates,
)
from vilvm.evaluation import Schedule, ais
from vilvm.models.eight_schools import EightSchools, eight_schools
from vilvm.models.ppca import PPCA

SCHEDULE = Schedule(num_chains=4, num_temperatures=5, leapfrog=1)
X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))


def subsampled(x):
    return pyro.plate("data", len(x), subsample_size=len(x) // 2)


def model(x):
    with subsampled(x) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index, 0])


def guide(x):
    with subsampled(x) as index:
        pyro.sample("z", dist.Normal(0.4 * x[index, 0], 0.8))


def schools():
    lvm, data = EightSchools(guide="mean_field"), eight_schools()
    vilvm.log_weights(lvm, data.x)  # the first call initialises an autoguide
    return lvm, data


PAIRS = {
    "several batches": lambda: (PPCA(4, 2).maximise(X), X),
    "a shared latent": schools,
    "a subsampled plate": lambda: (vilvm.Pair(model, guide), X),
}
QUESTIONS = {
    "evaluate": partial(vilvm.evaluate, num_samples=30),
    "pareto_k": partial(pareto_k, num_samples=100),
    "ais": partial(ais, schedule=SCHEDULE),
    "correction": partial(correction, num_samples=1000),
    "rates": partial(rates, num_samples=5),
    "collapse": partial(collapse, num_samples=2),
    "active_units": partial(active_units, num_samples=2),
    "predictive_check": partial(predictive_check, num_draws=20, false_alarm=0.1),
    "gaps": partial(gaps, num_samples=20, steps=2, schedule=SCHEDULE),
    "gradient_snr": partial(gradient_snr, num_draws=24),
    "loo": partial(loo, num_samples=100),
}
BY_BATCH = ("evaluate", "pareto_k", "ais", "correction", "predictive_check")
REFUSED = {
    "several batches": {"loo"},
    "a shared latent": {"collapse", "active_units"},
    "a subsampled plate": {"ais", "gaps", "predictive_check", "gradient_snr", "loo"},
}


def numbers(found):
    """All tensors and floats of a result, except the time taken."""
    if isinstance(found, torch.Tensor | float):
        return [torch.as_tensor(found)]
    if isinstance(found, dict):
        return [t for n, v in found.items() if n != "seconds" for t in numbers(v)]
    if isinstance(found, tuple):
        return [t for value in found for t in numbers(value)]
    return numbers(vars(found)) if hasattr(found, "__dict__") else []


def assert_same(found, expected):
    assert numbers(found)
    for one, other in zip(numbers(found), numbers(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("pair", PAIRS)
def test_prepared_data_give_the_same_numbers(pair, name):
    if name in REFUSED[pair]:
        pytest.skip(f"{name} refuses this pair")
    (lvm, data), ask = PAIRS[pair](), QUESTIONS[name]
    expected = ask(lvm, data, seed=3)
    prepared = vilvm.prepare(lvm, data, seed=3)
    assert_same(ask(prepared), expected)
    assert_same(ask(prepared), expected)


@pytest.mark.slow
def test_the_order_of_calls_does_not_matter():
    prepared = vilvm.prepare(*PAIRS["several batches"](), seed=3)
    names = [name for name in QUESTIONS if name not in REFUSED["several batches"]]
    first = {name: QUESTIONS[name](prepared) for name in names}
    for name in reversed(names):
        assert_same(QUESTIONS[name](prepared), first[name])


def test_preparation_divides_the_data_once(monkeypatch):
    prepared_module, cuts = import_module("vilvm.weights.prepared"), []
    real = prepared_module._cut
    monkeypatch.setattr(
        prepared_module, "_cut", lambda *given: (cuts.append(1), real(*given))[1]
    )
    prepared = vilvm.prepare(*PAIRS["several batches"](), seed=3)
    vilvm.evaluate(prepared, num_samples=5)
    pareto_k(prepared, num_samples=100)
    assert len(cuts) == 1
    ais(prepared, schedule=SCHEDULE)  # its batches are larger
    ais(prepared, schedule=SCHEDULE)
    assert len(cuts) == 2


def test_a_given_batch_size_holds_for_all():
    lvm, data = PAIRS["several batches"]()
    prepared = vilvm.prepare(lvm, data, batch_size=40)
    assert [len(batch) for batch in prepared.batches] == [40, 40, 40]
    expected = ais(lvm, data, schedule=SCHEDULE, batch_size=40)
    assert_same(ais(prepared, schedule=SCHEDULE), expected)


def test_parts_hold_their_data():
    lvm, data = PAIRS["a subsampled plate"]()
    prepared = vilvm.prepare(lvm, data)
    with prepared.running():
        parts = prepared.parts()
    assert [part.num_columns for part in parts] == [25, 25, 10]
    for part, start in zip(parts, (0, 50, 100), strict=True):
        assert ((part.index >= start) & (part.index < start + 50)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": X}, "a Prepared holds its data"),
        ({"seed": 4}, "prepared with seed=3"),
        ({"batch_size": 20}, "prepared with batch_size=40"),
    ],
)
@pytest.mark.parametrize("name", QUESTIONS)
def test_contradicting_arguments_are_refused(name, options, message):
    if "batch_size" in options and name not in BY_BATCH:
        pytest.skip(f"{name} has no option batch_size, or another meaning of it")
    prepared = vilvm.prepare(PPCA(4, 2), X, batch_size=40, seed=3)
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        QUESTIONS[name](prepared, **options)


# active_units counts its data before it prepares them, with another message.
@pytest.mark.parametrize("name", sorted(QUESTIONS.keys() - {"active_units"}))
def test_missing_data_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: the data are missing"):
        QUESTIONS[name](PPCA(4, 2))


@pytest.mark.slow
def test_diagnose_prepares_a_pair_once_per_seed(monkeypatch):
    """Counts the calls of ``find_layout`` by preparation and by diagnostics; data in one batch.

    Preparation calls it four times: for ``diagnose``; for ``rates`` and for ``correction``, whose
    seeds differ so that their draws are independent; and for the fitted local guide, which is
    another pair. The diagnostics use these layouts. Fits and chains, whose number depends on the
    time budget, are not counted.
    """
    calls, real = Counter(), vilvm.weights.find_layout

    def counted(*given, **options):
        calls[sys._getframe(1).f_globals["__name__"]] += 1
        return real(*given, **options)

    for name, module in list(sys.modules.items()):
        if name.startswith("vilvm") and getattr(module, "find_layout", None) is real:
            monkeypatch.setattr(module, "find_layout", counted)
    diagnose(*schools(), budget=200, schedule=SCHEDULE)
    assert calls["vilvm.weights.prepared"] == 4
    assert not [name for name in calls if name.startswith("vilvm.diagnostics")]
