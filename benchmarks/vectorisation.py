"""Three methods of running many samples through a pair, and the time that ``evaluate`` takes to
compare them with single runs.

    python -m benchmarks.vectorisation [--rounds 7]

All use the same VAE, so each method other than the first is forced. Their bounds must agree within
5 Monte Carlo standard errors. Compiling and tracing are not timed.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.interleaved import race, report
from benchmarks.svi.workloads import WORKLOADS
from benchmarks.svi_step import pictures
from vilvm._compile import UntraceableError
from vilvm._runtime.memory import widen_heap
from vilvm.evaluation import evaluate
from vilvm.evaluation.sample_passes import SamplePasses
from vilvm.lvm import evaluation_mode
from vilvm.training import fit
from vilvm.weights import _vectorisation, find_layout

PART, SAMPLES, CHUNK = 50, 250, 125


def passes(
    net: Any, x: torch.Tensor, way: str, compiled: bool = False
) -> Callable[[], torch.Tensor]:
    """Passes of `SAMPLES` samples by one method, after a warm-up: log w, shape (SAMPLES, PART)."""
    run, layout = SamplePasses(net, compiled), find_layout(net, x)

    def weights() -> torch.Tensor:
        return torch.cat([terms[0] for terms in run(x, SAMPLES, CHUNK, layout)])

    with ExitStack() as forced:
        if way != _vectorisation.VECTORISED:
            forced.enter_context(
                mock.patch.object(
                    _vectorisation,
                    "_vectorised_differs",
                    mock.Mock(return_value="another way is asked for"),
                )
            )
        if way == _vectorisation.ONE_BY_ONE:
            forced.enter_context(
                mock.patch.object(
                    _vectorisation,
                    "known_graph",
                    mock.Mock(side_effect=UntraceableError("asked for")),
                )
            )
        weights()
        assert (
            _vectorisation.strategy_of(
                net,
                x,
                _vectorisation.Pass(lambda *_: {}, "log-weights"),
                layout.vectorisation,
            )
            == way
        )
    return weights


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vectorisation",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    widen_heap()
    torch.manual_seed(0)
    net, data = WORKLOADS["vae"].make(), pictures("cpu")
    fit(net, data, steps=400, batch_size=128)
    with torch.no_grad(), evaluation_mode(net):
        x = data[:PART]
        cases = {
            "vectorised": passes(net, x, _vectorisation.VECTORISED),
            "vectorised, compiled": passes(
                net, x, _vectorisation.VECTORISED, compiled=True
            ),
            "vmap": passes(net, x, _vectorisation.VMAP),
            "vmap, compiled": passes(net, x, _vectorisation.VMAP, compiled=True),
            "one by one": passes(net, x, _vectorisation.ONE_BY_ONE),
            "one by one, compiled": passes(
                net, x, _vectorisation.ONE_BY_ONE, compiled=True
            ),
        }
        reference = evaluate(net, x, num_samples=SAMPLES, seed=1).bounds["elbo"]
        for name, case in cases.items():
            z = (case().mean().item() - reference.mean) / (2**0.5 * reference.mc_se)
            assert abs(z) < 5, (
                f"the ELBO {name} is {z:.1f} standard errors from that of evaluate"
            )
        report(
            f"{SAMPLES} samples of {PART} images",
            race(cases, args.rounds, warmup=1),
            per=1e-3 * SAMPLES,
            unit="ms a sample",
        )

    unchecked = mock.patch.multiple(
        _vectorisation, _check=lambda *_: None, _vectorised_differs=lambda *_: None
    )
    for samples in (100, 1000, 5000):
        bound = partial(
            evaluate,
            net,
            data[:100],
            num_samples=samples,
            progress=False,
            compile=False,
        )

        def without(bound: Callable[[], object] = bound) -> None:
            with unchecked:
                bound()

        seconds = race(
            {"not compared with single runs": without, "compared": bound},
            args.rounds,
            warmup=1,
        )
        report(f"evaluate, {samples} samples of 100 images", seconds)


if __name__ == "__main__":
    main()
