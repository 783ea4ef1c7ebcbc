"""The importance-weighted bound of 5,000 samples: vilvm, eager and compiled, beside a loop in
plain PyTorch and Pyro's RenyiELBO.

    python -m benchmarks.evaluation [--images 100] [--rounds 7] [--json FILE]

All evaluate the same briefly trained parameters, and the bounds must agree within 5 Monte Carlo
standard errors. Compile time is printed, and is not part of the other times.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pyro.infer import RenyiELBO
from torch import Tensor

from benchmarks.interleaved import race
from benchmarks.results import machine, markdown, rows_of, write
from benchmarks.svi.workloads import WORKLOADS, Net, draw
from benchmarks.svi_step import pictures
from vilvm._runtime.memory import widen_heap
from vilvm.evaluation import evaluate
from vilvm.evaluation.sample_passes import SamplePasses
from vilvm.lvm import evaluation_mode
from vilvm.training import fit
from vilvm.weights import find_layout

AT_ONCE = (1, 5)  # images of a call of RenyiELBO
SAMPLES, ROWS, PART = 5000, 6250, 50  # 125 samples of 50 images a pass
HAND = "PyTorch by hand, eager"


def weights_by_hand(
    decoder: Callable[[Tensor], Tensor],
    mean: Tensor,
    log_variance: Tensor,
    part: Tensor,
) -> Tensor:
    """log Σ w of one pass."""
    wide = mean.expand(ROWS // PART, -1, -1)
    z = draw(wide, log_variance.expand_as(wide))
    log_q = -0.5 * ((z - mean).square() / log_variance.exp() + log_variance).sum(-1)
    log_likelihood = -torch.nn.functional.binary_cross_entropy_with_logits(
        decoder(z), part.expand(len(z), -1, -1), reduction="none"
    ).sum(-1)
    return torch.logsumexp(log_likelihood - 0.5 * z.square().sum(-1) - log_q, 0)


def by_hand(
    net: Net, x: Tensor, weights: Callable[..., Tensor] = weights_by_hand
) -> Tensor:
    """log mean w of every image, by running log-sum-exps."""
    found = []
    for part in x.split(PART):
        mean, log_variance = net.encoder(part).chunk(2, -1)
        total = torch.full((len(part),), -math.inf)
        for _ in range(SAMPLES // (ROWS // PART)):
            total = torch.logaddexp(
                total, weights(net.decoder, mean, log_variance, part)
            )
        found.append(total - math.log(SAMPLES // (ROWS // PART) * (ROWS // PART)))
    return torch.cat(found)


def by_pyro(net: Net, x: Tensor, images: int) -> Tensor:
    """Some images at a time; with a plate over the data, each has its own weights."""
    elbo = RenyiELBO(
        alpha=0, num_particles=SAMPLES, vectorize_particles=True, max_plate_nesting=1
    )
    return _means(x, images, lambda part: -elbo.loss(net.model, net.guide, part))


def by_numpyro(net: Net, images: int) -> Callable[[Tensor], Tensor]:
    """The same in NumPyro, jitted."""
    from benchmarks.svi.peers import bound

    estimate = bound(WORKLOADS["vae"], net, SAMPLES)
    return lambda x: _means(x, images, estimate)


def _means(x: Tensor, images: int, total: Callable[[Tensor], float]) -> Tensor:
    """The mean bound of each part of the images."""
    return torch.tensor([total(part) / len(part) for part in x.split(images)])


def by_passes(net: Net, x: Tensor, compiled: bool) -> Callable[[], Tensor]:
    """The passes of ``evaluate``, with its program compiled once."""
    passes, layout = SamplePasses(net, compiled), find_layout(net, x[:PART])

    def bound() -> Tensor:
        found = []
        for part in x.split(PART):
            terms = [t[0] for t in passes(part, SAMPLES, ROWS // PART, layout)]
            found.append(torch.logsumexp(torch.cat(terms), 0) - math.log(SAMPLES))
        return torch.cat(found)

    return bound


def _numpyro_cases(net: Net, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """NumPyro's rows, if it is installed."""
    try:
        found = {n: by_numpyro(net, n) for n in AT_ONCE}
    except ModuleNotFoundError as error:
        print(f"NOT TIMED: NumPyro ({error})", file=sys.stderr)
        return {}
    return {
        f"NumPyro RenyiELBO, {n} at a time": partial(run, x) for n, run in found.items()
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--images", type=int, default=100, help="a multiple of 50")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for the rows, in ms an image")
    args = parser.parse_args(argv)
    widen_heap()
    torch.manual_seed(0)
    net, data = WORKLOADS["vae"].make(), pictures("cpu")
    fit(net, data, steps=400, batch_size=128)
    x = data[: args.images]
    reference = evaluate(net, x, num_samples=SAMPLES).bounds["iwae"]
    with torch.no_grad(), evaluation_mode(net):
        began = time.perf_counter()
        compiled = by_passes(net, x, True)
        compiled()
        print(
            f"compiled and run once in {time.perf_counter() - began:.1f} s",
            file=sys.stderr,
        )
        cases: dict[str, Callable[[], Tensor]] = {
            HAND: lambda: by_hand(net, x),
            "PyTorch by hand, torch.compile": partial(
                by_hand, net, x, torch.compile(weights_by_hand)
            ),
            **{
                f"Pyro RenyiELBO, {n} at a time": partial(by_pyro, net, x, n)
                for n in AT_ONCE
            },
            **_numpyro_cases(net, x),
            "vilvm eager": by_passes(net, x, False),
            "vilvm compiled": compiled,
        }
        for name, case in cases.items():
            z = (case().mean().item() - reference.mean) / (2**0.5 * reference.mc_se)
            assert abs(z) < 5, (
                f"the bound of {name} is {z:.1f} standard errors from that of evaluate"
            )
        seconds = race(cases, args.rounds, warmup=1)
    ms = {
        name: [1e3 * s / args.images for s in taken] for name, taken in seconds.items()
    }
    rows = rows_of("IWAE-5000, ms an image", None, ms, HAND, "")
    print(machine(), markdown(rows))
    if args.json:
        write(args.json, rows)


if __name__ == "__main__":
    main()
