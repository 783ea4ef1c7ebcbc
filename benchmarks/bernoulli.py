"""vilvm's IndependentBernoulli against torch's Bernoulli, on the logits of one pass of an
evaluation.

python -m benchmarks.bernoulli
"""

import torch

from benchmarks.interleaved import race, report
from vilvm.distributions import IndependentBernoulli


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = 3 * torch.randn(80, 100, 784, device=device)
    x = torch.bernoulli(torch.full((100, 784), 0.2, device=device))

    def ours() -> torch.Tensor:
        return IndependentBernoulli(logits, validate_args=False).log_prob(x)

    def torchs() -> torch.Tensor:
        return (
            torch.distributions.Bernoulli(logits=logits, validate_args=False)
            .log_prob(x)
            .sum(-1)
        )

    assert torch.allclose(ours(), torchs(), rtol=1e-5), "the two densities differ"
    with torch.no_grad():
        seconds = race(
            {"vilvm IndependentBernoulli": ours, "torch Bernoulli, summed": torchs}
        )
    report(
        "log p(x | logits), 8,000 × 784 logits",
        seconds,
        per=logits.numel() * 1e-9,
        unit="ns a logit",
    )


if __name__ == "__main__":
    main()
