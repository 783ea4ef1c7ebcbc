"""What only a machine with a GPU can show: that CPU and GPU say the same, that a run resumes bit for bit there, and how fast it is.

    python -m benchmarks.gpu [--epochs 12]

Prints one line a check, and fails at the first that does not hold. The tables are for docs/performance.md.
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import torch

import vilvm
from benchmarks import bernoulli, svi_step
from examples import vae_mnist
from models.vae import VAE
from vilvm.data import seeded
from vilvm.datasets import digits
from vilvm.evaluation import Schedule, ais, bdmc
from vilvm.export import to_datatree


def same_numbers() -> str:
    """The bounds of one model on one data set, on both devices: |z| < 5 in Monte Carlo standard errors, for every datum."""
    data = digits()
    lvm = VAE(64, 4).start_at(data.train.x.mean(0))
    vilvm.fit(lvm, data.train, epochs=20, batch_size=100)
    cpu = vilvm.evaluate(lvm, data.test, num_samples=2000)
    gpu = vilvm.evaluate(lvm.to("cuda"), data.test, num_samples=2000)
    worst = 0.0
    for name, bound in cpu.bounds.items():
        error = (bound.errors.square() + gpu.bounds[name].errors.square()).sqrt()
        worst = max(worst, ((bound.values - gpu.bounds[name].values) / error).abs().max().item())
    assert worst < 5, f"CPU and GPU differ by {worst:.1f} standard errors"
    return f"CPU and GPU agree: largest |z| of {2 * len(data.test)} bounds {worst:.2f}"


def same_diagnosis() -> str:
    """Annealing on both devices, |z| < 5 of its mean; and every diagnostic and the export run on the GPU."""
    data = digits()
    lvm = VAE(64, 4).start_at(data.train.x.mean(0))
    vilvm.fit(lvm, data.train, epochs=20, batch_size=100)
    schedule = Schedule(num_temperatures=50)
    cpu = ais(lvm, data.test, schedule).bound
    gpu = ais(lvm.to("cuda"), data.test, schedule).bound
    z = (cpu.mean - gpu.mean) / (cpu.mc_se**2 + gpu.mc_se**2) ** 0.5
    assert abs(z) < 5, f"annealing on CPU and GPU differs by {z:.1f} standard errors"
    compiled = ais(lvm, data.test, schedule, compile=True).bound
    same = abs(compiled.mean - gpu.mean) / (compiled.mc_se**2 + gpu.mc_se**2) ** 0.5
    assert same < 5, f"annealing, compiled and not, differs by {same:.1f} standard errors"
    gap = bdmc(lvm, schedule, num_simulations=100).gap
    found = vilvm.diagnose(lvm, data.test, num_data=100, schedule=schedule)
    elsewhere = {"Means and standard deviations", "Leave-one-out prediction", "Convergence"}
    failed = {name: why for name, why in found.skipped.items() if name not in elsewhere}
    assert not failed, f"not run on the GPU: {failed}"
    to_datatree(lvm, data.test.subset(slice(0, 20)), num_samples=100)
    return f"annealing agrees (z = {z:.2f}), BDMC gap {gap.mean:.3f} ± {gap.mc_se:.3f}, a diagnosis took {found.seconds:.0f} s"


def resumes_bit_for_bit() -> str:
    """33 steps and 27 more are 60 steps."""
    data = digits()

    def train(folder: Path, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        with seeded(1):
            lvm = VAE(64, 4)
        vilvm.fit(
            lvm, data.train, steps=steps, batch_size=100, device="cuda", run_dir=folder, resume=resume, validation=data.validation
        )
        return copy.deepcopy(lvm.state_dict())

    with tempfile.TemporaryDirectory() as root:
        whole = train(Path(root) / "whole", 60)
        train(Path(root) / "parts", 33)
        parts = train(Path(root) / "parts", 60, resume=True)
    assert all(torch.equal(whole[n], parts[n]) for n in whole), "a resumed run differs"
    return "a resumed run is bit-identical"


def compiled_is_eager() -> str:
    """Steps of one CUDA graph and eager ones, from one seed: the same losses and parameters; and a compiled run resumes bit for bit."""
    data = digits()
    ends = {}
    for compile in (False, True):
        with seeded(1):
            lvm = VAE(64, 4)
        fitted = vilvm.fit(lvm, data.train, steps=200, batch_size=100, device="cuda", compile=compile)
        ends[compile] = fitted.history["elbo"], lvm.state_dict()
    apart = float(abs(ends[True][0] - ends[False][0]).max())
    assert apart < 0.05, f"the training ELBO of compiled and eager steps differs by {apart:.3f} nats"
    with tempfile.TemporaryDirectory() as root:
        states = []
        for name, parts in (("whole", [200]), ("parts", [133, 200])):
            with seeded(1):
                lvm = VAE(64, 4)
            for steps in parts:
                options = {"steps": steps, "batch_size": 100, "device": "cuda", "compile": True, "run_dir": Path(root) / name}
                vilvm.fit(lvm, data.train, resume=True, **options)
            states.append(copy.deepcopy(lvm.state_dict()))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0]), "a resumed compiled run differs"
    return (
        f"compiled and eager steps: training ELBO within {apart:.4f} nats over 200 steps; a resumed compiled run is bit-identical"
    )


def memory_is_bounded() -> str:
    """Peak memory of an evaluation does not grow with the number of samples."""
    lvm, x = VAE().to("cuda"), torch.bernoulli(torch.full((2000, 784), 0.2))
    peaks = []
    for num_samples in (20_000, 80_000):
        torch.cuda.reset_peak_memory_stats()
        vilvm.evaluate(lvm, x[:200], num_samples=num_samples)
        peaks.append(torch.cuda.max_memory_allocated() / 2**30)
    assert peaks[1] < 1.1 * peaks[0], f"peak memory grew from {peaks[0]:.2f} to {peaks[1]:.2f} GiB"
    return f"peak memory of an evaluation: {peaks[0]:.2f} GiB at 20,000 samples, {peaks[1]:.2f} GiB at 80,000"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12, help="of the main job")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a CUDA device, and torch finds none.")
    for check in (same_numbers, same_diagnosis, resumes_bit_for_bit, compiled_is_eager, memory_is_bounded):
        print(check(), flush=True)
    bernoulli.main()
    svi_step.main(["--device", "cuda"])
    with tempfile.TemporaryDirectory() as root:
        for device in ("cuda", "cpu"):
            began = time.perf_counter()
            vae_mnist.main(["--device", device, "--epochs", str(args.epochs), "--out", f"{root}/{device}"])
            print(f"the main job on {device}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
