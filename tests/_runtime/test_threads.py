"""One thread at a time runs a pair; another gets an error and changes nothing."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK

import vilvm
from vilvm._runtime.parameters import _SERVING
from vilvm._runtime.random import seeded
from vilvm._runtime.threads import one_thread
from vilvm.data.datasets import on_disk
from vilvm.diagnostics.pareto_k import pareto_k
from vilvm.evaluation import Schedule, ais
from vilvm.lvm import BusyError
from vilvm.models.ppca import PPCA
from vilvm.weights import predict

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def pair():
    with seeded(0):
        return PPCA(3, 1)


CALLS = {
    "fit": lambda: vilvm.fit(pair(), X, steps=1, progress=False),
    "evaluate": lambda: vilvm.evaluate(pair(), X, num_samples=2, progress=False),
    "diagnose": lambda: vilvm.diagnose(pair(), X, budget=10, progress=False),
    "log_weights": lambda: vilvm.log_weights(pair(), X),
    "posterior": lambda: vilvm.posterior(pair(), X),
    "resample": lambda: vilvm.resample(pair(), X, proposals=2),
    "sample": lambda: vilvm.sample(pair(), 2),
    "predict": lambda: predict(pair(), {"z": torch.zeros(2, 1)}),
    "ais": lambda: ais(pair(), X, Schedule(num_chains=2, num_temperatures=2)),
    "pareto_k": lambda: pareto_k(pair(), X, num_samples=100),
    "a pair": lambda: vilvm.Pair(pair().model, pair().guide).model(X),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_second_thread_is_refused(call):
    with ThreadPoolExecutor(1) as other, one_thread():
        pair()
        with pytest.raises(
            BusyError, match="wait until it has ended, or use another process"
        ):
            other.submit(CALLS[call]).result(10)
    assert not _SERVING
    assert not _PYRO_STACK


def test_a_refused_thread_changes_nothing_of_the_run():
    def trained(callbacks):
        lvm = pair()
        fitted = vilvm.fit(
            lvm, X, steps=60, batch_size=5, callbacks=callbacks, progress=False
        )
        return fitted, list(lvm.parameters())

    with ThreadPoolExecutor(1) as other:

        def refused(event):
            """Stops the run if the thread was refused."""
            return isinstance(other.submit(CALLS["evaluate"]).exception(10), BusyError)

        first, expected = trained([lambda event: True])
        second, found = trained([refused])
    assert first.stopped == second.stopped == "callback"
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert first.history["elbo"].tolist() == second.history["elbo"].tolist()


def test_callback_may_evaluate_and_releases_the_thread():
    bounds = []

    def callback(event):
        bounds.append(
            vilvm.evaluate(event.lvm, X, num_samples=2, progress=False)
            .bounds["elbo"]
            .mean
        )
        vilvm.fit(pair(), X, steps=1, progress=False)

    vilvm.fit(pair(), X, steps=5, callbacks=[callback], progress=False)
    with pytest.raises(ZeroDivisionError):
        vilvm.fit(pair(), X, steps=1, callbacks=[lambda event: 1 / 0], progress=False)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(CALLS["fit"]).result(30).steps == 1
    assert len(bounds) == 1
    assert not list(pyro.get_param_store().keys())


def test_data_on_disk_are_prefetched_by_a_thread(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X.numpy())
    fitted = vilvm.fit(pair(), on_disk(path), epochs=3, batch_size=5, progress=False)
    assert fitted.steps == 12


def test_the_check_takes_negligible_time():
    began = time.perf_counter()
    for _ in range(1000):
        with one_thread():
            pass
    assert (
        time.perf_counter() - began < 0.05
    )  # 50 µs each; the check takes about one of them
