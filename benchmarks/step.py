"""A training step of the VAE: ``vilvm.fit``, Pyro's own SVI, and the same model written by hand in PyTorch.

    python -m benchmarks.step

All three train the same network for three epochs of 200 steps, with a fresh binarisation of every batch and Adam at 1e-3. What
``vilvm.fit`` does besides is counted: it reads and checks the data, looks at a batch after every epoch, and watches for NaN.
"""

from collections.abc import Iterator
from functools import partial

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import vilvm
from benchmarks.interleaved import race, report
from models.vae import VAE
from vilvm.datasets import DynamicBinarisation

EPOCHS, STEPS, BATCH = 3, 200, 200


def by_hand(lvm: VAE, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    """The ELBO of one sample, its gradient by reparameterisation."""
    mean, log_variance = lvm.encoder(x).chunk(2, -1)
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    log_q = -0.5 * ((z - mean).square() / log_variance.exp() + log_variance).sum(-1)
    log_prior = -0.5 * z.square().sum(-1)
    log_likelihood = -torch.nn.functional.binary_cross_entropy_with_logits(lvm.decoder(z), x, reduction="none").sum(-1)
    optimizer.zero_grad()
    (log_q - log_prior - log_likelihood).mean().backward()
    optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    grey = torch.rand(STEPS * BATCH, 784, device=device)
    data = vilvm.Data(grey, transform=DynamicBinarisation())
    networks = [VAE().to(device) for _ in range(3)]
    svi = SVI(networks[1].model, networks[1].guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())  # type: ignore[attr-defined]
    adam = torch.optim.Adam(networks[2].parameters(), lr=1e-3, fused=True)

    def batches() -> Iterator[Tensor]:
        order = (torch.randperm(len(grey), device=device).split(BATCH) for _ in range(EPOCHS))
        return (torch.bernoulli(grey[index]) for epoch in order for index in epoch)

    cases = {
        "vilvm.fit": partial(vilvm.fit, networks[0], data, epochs=EPOCHS, batch_size=BATCH),
        "pyro.infer.SVI": lambda: [svi.step(x) for x in batches()],
        "PyTorch by hand": lambda: [by_hand(networks[2], adam, x) for x in batches()],
    }
    report("A training step of the VAE, batch 200", race(cases, rounds=5, warmup=1), per=EPOCHS * STEPS * 1e-3, unit="ms a step")


if __name__ == "__main__":
    main()
