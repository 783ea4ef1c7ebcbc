"""Checks that need a GPU: CPU and GPU agree, a run resumes bit for bit on a GPU, and timings.

    python -m benchmarks.gpu                          # all checks, within nine minutes
    python -m benchmarks.gpu --only steps resume      # these
    python -m benchmarks.gpu --device cpu --total 3600  # a rehearsal without a GPU

The most valuable checks come first. Each runs in a process of its own with a time limit, so that
one that fails, hangs or breaks the device costs no other. Its outcome is written as soon as it
ends, one JSON line in `--out`. The tables are for docs/performance_details.md.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch

import vilvm
from benchmarks import bernoulli, svi_step
from examples import vae_mnist
from vilvm._runtime.random import seeded
from vilvm.data.datasets import digits
from vilvm.evaluation import Estimate, Schedule, ais, bdmc
from vilvm.export import to_datatree
from vilvm.lvm import module_parameters
from vilvm.models.vae import VAE
from vilvm.weights import _vectorisation, find_layout
from vilvm.weights.log_weights import log_weights_pass


def same_numbers(device: str) -> str:
    """The bounds of one model on one data set, on both devices: |z| < 5 in Monte Carlo standard
    errors, for every datum.
    """
    data = digits()
    lvm = VAE(64, 4).start_at(data.train.x.mean(0))
    vilvm.fit(lvm, data.train, epochs=20, batch_size=100)
    cpu = vilvm.evaluate(lvm, data.test, num_samples=2000)
    gpu = vilvm.evaluate(lvm.to(device), data.test, num_samples=2000)
    worst = 0.0
    for name, bound in cpu.bounds.items():
        error = (bound.errors.square() + gpu.bounds[name].errors.square()).sqrt()
        worst = max(
            worst, ((bound.values - gpu.bounds[name].values) / error).abs().max().item()
        )
    assert worst < 5, f"CPU and GPU differ by {worst:.1f} standard errors"
    return f"CPU and GPU agree: largest |z| of {2 * len(data.test)} bounds {worst:.2f}"


def same_ways(device: str) -> str:
    """Weights under vmap, and one by one, equal those of single runs on both devices."""
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for name, decode in {
        _vectorisation.VMAP: lambda z: z.softmax(1),
        _vectorisation.ONE_BY_ONE: lambda z: (
            2 * z if float(z.detach().sum()) > 0 else z + 1
        ),
    }.items():

        def model(
            x: torch.Tensor, decode: Callable[[torch.Tensor], torch.Tensor] = decode
        ) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

        def guide(x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))

        def evaluated(
            where: str, model: Any = model, guide: Any = guide, name: str = name
        ) -> Estimate:
            lvm: Any = vilvm.Pair(model, guide).to(where)
            layout, there = find_layout(lvm, x.to(where)), x.to(where)
            with torch.no_grad(), module_parameters(lvm):
                taken = _vectorisation.strategy_of(
                    lvm,
                    there,
                    log_weights_pass(lvm, layout),
                    layout.vectorisation,
                    lambda _: None,
                )
            assert taken == name, f"on {where} the way is {taken}, not {name}"
            return vilvm.evaluate(lvm, there, num_samples=500).bounds["elbo"]

        cpu, gpu = evaluated("cpu"), evaluated(device)
        z = (
            (
                (cpu.values - gpu.values.cpu())
                / (cpu.errors**2 + gpu.errors.cpu() ** 2).sqrt()
            )
            .abs()
            .max()
            .item()
        )
        assert z < 5, f"{name}: CPU and GPU differ by {z:.1f} standard errors"
    return "samples by torch.vmap and one by one weigh the same on both"


def same_diagnosis(device: str) -> str:
    """AIS agrees on both devices (|z| < 5 of its mean); all diagnostics and the export run on the
    GPU.
    """
    data = digits()
    lvm = VAE(64, 4).start_at(data.train.x.mean(0))
    vilvm.fit(lvm, data.train, epochs=20, batch_size=100)
    schedule = Schedule(num_temperatures=50)
    cpu = ais(lvm, data.test, schedule).bound
    gpu = ais(lvm.to(device), data.test, schedule).bound
    z = (cpu.mean - gpu.mean) / (cpu.mc_se**2 + gpu.mc_se**2) ** 0.5
    assert abs(z) < 5, f"annealing on CPU and GPU differs by {z:.1f} standard errors"
    compiled = ais(lvm, data.test, schedule, compile=True).bound
    same = abs(compiled.mean - gpu.mean) / (compiled.mc_se**2 + gpu.mc_se**2) ** 0.5
    assert same < 5, (
        f"annealing, compiled and not, differs by {same:.1f} standard errors"
    )
    gap = bdmc(lvm, schedule, num_simulations=100).gap
    found = vilvm.diagnose(lvm, data.test, num_data=100, schedule=schedule, budget=60)
    elsewhere = {
        "Means and standard deviations",
        "Leave-one-out prediction",
        "Convergence",
    }
    failed = {name: why for name, why in found.skipped.items() if name not in elsewhere}
    assert not failed, f"not run on the GPU: {failed}"
    to_datatree(lvm, data.test.subset(slice(0, 20)), num_samples=100)
    return (
        f"annealing agrees (z = {z:.2f}), BDMC gap {gap.mean:.3f} ± {gap.mc_se:.3f}, a diagnosis "
        f"took {found.seconds:.0f} s"
    )


def resumes_bit_for_bit(device: str) -> str:
    """33 steps, resumed for 27 more, equal 60 steps."""
    data = digits()

    def train(
        folder: Path, steps: int, resume: bool = False
    ) -> dict[str, torch.Tensor]:
        with seeded(1):
            lvm = VAE(64, 4)
        vilvm.fit(
            lvm,
            data.train,
            steps=steps,
            batch_size=100,
            device=device,
            run_dir=folder,
            resume=resume,
            validation=data.validation,
        )
        return copy.deepcopy(lvm.state_dict())

    with tempfile.TemporaryDirectory() as root:
        whole = train(Path(root) / "whole", 60)
        train(Path(root) / "parts", 33)
        parts = train(Path(root) / "parts", 60, resume=True)
    assert all(torch.equal(whole[n], parts[n]) for n in whole), "a resumed run differs"
    return "a resumed run is bit-identical"


def compiled_is_eager(device: str) -> str:
    """Steps of one CUDA graph and eager steps from one seed have the same losses and parameters; a
    compiled run resumes bit for bit.
    """
    data = digits()
    ends = {}
    for compile in (False, True):
        with seeded(1):
            lvm = VAE(64, 4)
        fitted = vilvm.fit(
            lvm, data.train, steps=200, batch_size=100, device=device, compile=compile
        )
        ends[compile] = fitted.history["elbo"], lvm.state_dict()
    apart = float(abs(ends[True][0] - ends[False][0]).max())
    assert apart < 0.05, (
        f"the training ELBO of compiled and eager steps differs by {apart:.3f} nats"
    )
    with tempfile.TemporaryDirectory() as root:
        states = []
        for name, parts in (("whole", [200]), ("parts", [133, 200])):
            with seeded(1):
                lvm = VAE(64, 4)
            for steps in parts:
                options = {
                    "steps": steps,
                    "batch_size": 100,
                    "device": device,
                    "compile": True,
                    "run_dir": Path(root) / name,
                }
                vilvm.fit(lvm, data.train, resume=True, **options)
            states.append(copy.deepcopy(lvm.state_dict()))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0]), (
        "a resumed compiled run differs"
    )
    return (
        f"compiled and eager steps: training ELBO within {apart:.4f} nats over 200 steps; a "
        "resumed compiled run is bit-identical"
    )


def memory_is_bounded(device: str) -> str:
    """Peak memory of an evaluation does not grow with the number of samples."""
    if device != "cuda":
        return "peak memory is counted on a GPU only"
    lvm, x = VAE().to(device), torch.bernoulli(torch.full((2000, 784), 0.2))
    peaks = []
    for num_samples in (20_000, 80_000):
        torch.cuda.reset_peak_memory_stats()
        vilvm.evaluate(lvm, x[:200], num_samples=num_samples)
        peaks.append(torch.cuda.max_memory_allocated() / 2**30)
    assert peaks[1] < 1.1 * peaks[0], (
        f"peak memory grew from {peaks[0]:.2f} to {peaks[1]:.2f} GiB"
    )
    return (
        f"peak memory of an evaluation: {peaks[0]:.2f} GiB at 20,000 samples, {peaks[1]:.2f} GiB "
        "at 80,000"
    )


def first_steps(device: str) -> str:
    """A VAE trains, is evaluated, draws and is diagnosed on the device at all."""
    data = digits()
    lvm = VAE(64, 4).start_at(data.train.x.mean(0))
    fitted = vilvm.fit(
        lvm, data.train, steps=200, batch_size=100, device=device, compile=False
    )
    where = next(lvm.parameters()).device.type
    assert where == device, f"the parameters are on {where}"
    found = vilvm.evaluate(lvm, data.test, num_samples=100).bounds["iwae"]
    assert vilvm.sample(lvm, 5)["x"].device.type == device
    x = data.test.fixed().x.to(device)
    assert vilvm.posterior_mean(lvm, x)["z"].device.type == device
    return f"{fitted.steps} eager steps, IWAE-100 of the digits {found}"


def infers(device: str) -> str:
    """``infer`` takes data on the device and has the exact posterior of a mean."""

    def model(x: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(device)
    found = vilvm.infer(model, x, progress=False)
    precision = 100 + 0.01
    row = found.summary()["mu"]
    z = abs(row.mean - float(x.double().sum()) / precision) / row.mcse
    assert z < 5, f"the mean is {z:.1f} standard errors from the exact one"
    return f"infer took {found.seconds:.1f} s, its mean is {z:.1f} standard errors off"


def times_a_step(device: str) -> str:
    """Prints the table of a step: compiled, eager, Pyro's, and a graph captured by hand."""
    svi_step.main(
        ["--device", device, "--workload", "vae", "--batch", "128", "--rounds", "7"]
    )
    return "timed"


def times_all_steps(device: str) -> str:
    """Prints the tables of the density's kernel and of the other workloads."""
    bernoulli.main()
    svi_step.main(["--device", device, "--rounds", "5"])
    return "timed"


def main_job(device: str) -> str:
    """The main job on the device."""
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        vae_mnist.main(["--device", device, "--epochs", "12", "--out", root])
        return f"the main job took {time.perf_counter() - began:.0f} s on {device}"


class Check(NamedTuple):
    """A check and the most seconds that it may take on a GPU, its process's start included."""

    run: Callable[[str], str]
    seconds: float


CHECKS = {
    "first": Check(first_steps, 60),
    "compiled": Check(compiled_is_eager, 120),
    "resume": Check(resumes_bit_for_bit, 60),
    "numbers": Check(same_numbers, 60),
    "steps": Check(times_a_step, 120),
    "diagnosis": Check(same_diagnosis, 150),
    "memory": Check(memory_is_bounded, 60),
    "job": Check(main_job, 120),
    "infer": Check(infers, 60),
    "ways": Check(same_ways, 60),
    "all-steps": Check(times_all_steps, 240),
}


def run_apart(name: str, device: str, seconds: float) -> dict[str, Any]:
    """Runs a check in a process of its own, whose output is shown as it comes."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--here",
        name,
        "--device",
        device,
    ]
    began = time.perf_counter()
    try:
        code = subprocess.run(command, timeout=seconds).returncode
        outcome = "passed" if code == 0 else f"failed (status {code})"
    except subprocess.TimeoutExpired:
        outcome = f"stopped after {seconds:.0f} s"
    return {"check": name, "outcome": outcome, "seconds": time.perf_counter() - began}


def run_all(names: list[str], device: str, total: float, out: Path | None) -> list[str]:
    """Runs the checks in order until `total` seconds are over; returns those that did not pass."""
    end = time.perf_counter() + total
    lost = []
    for name in names:
        left = end - time.perf_counter()
        limit = min(CHECKS[name].seconds, left)
        if device == "cpu":
            limit = left
        found = {"check": name, "outcome": "no time left", "seconds": 0.0}
        if left > 10:
            found = run_apart(name, device, limit)
        print(f"== {name}: {found['outcome']} ({found['seconds']:.0f} s)", flush=True)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        if found["outcome"] != "passed":
            lost.append(name)
    return lost


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--only", nargs="+", choices=[*CHECKS], metavar="CHECK")
    parser.add_argument(
        "--total", type=float, default=540, help="seconds for all checks"
    )
    parser.add_argument("--out", type=Path, help="file for one JSON line a check")
    parser.add_argument(
        "--here", choices=[*CHECKS], help="run one check in this process"
    )
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a CUDA device, and torch finds none.")
    if args.here:
        print(CHECKS[args.here].run(args.device), flush=True)
        return
    lost = run_all(args.only or [*CHECKS], args.device, args.total, args.out)
    if lost:
        sys.exit(f"not passed: {', '.join(lost)}")


if __name__ == "__main__":
    main()
