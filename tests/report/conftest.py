"""A page with every part, of untrained models."""

import pytest
import torch

from vilvm import Data, plots, report
from vilvm.diagnostics import Judgement, PosteriorTable, Scalar
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.evaluation import compare
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.ppca import PPCA
from vilvm.report import Page, Table
from vilvm.training.history import History, Record

NASTY = '<script>alert("x")</script> & <b>'


def history(length):
    rows = [
        {
            "epoch": i,
            "step": 9 * i,
            "elbo": -90 - 50 / i,
            "validation_elbo": -91 - 50 / i,
            "validation_se": 0.3,
        }
        for i in range(1, length)
    ]
    rest = {
        "rate": 20.0,
        "distortion": 70.0,
        "learning_rate": 1e-3,
        "gradient_norm": 1.0,
        "skipped": 0,
        "seconds": 1.0,
    }
    return History([Record(**row, **rest, data_per_second=1e4) for row in rows])


def posterior_table():
    draws = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)).double()
    rows = tuple(
        Scalar(name, 0.0, 1.0, -1.6, 1.6, k)
        for name, k in ((NASTY, 0.4), ("tau", 0.9), ("theta[St. Paul's]", 0.2))
    )
    badness = torch.tensor([0.6, 1.3, 0.3])
    return PosteriorTable(rows, draws, badness, "draws of the guide", f"All {NASTY}.")


@pytest.fixture(scope="session")
def full_page():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.rand(60, 64)
        data = Data(x, name=NASTY, split="test", image_shape=(8, 8))
        models = {
            NASTY: PPCA(64, 2).maximise(x),
            "linear, larger": PPCA(64, 5).maximise(x),
            "deep AE": Autoencoder(64, 2),
        }
        ledger = compare(models, data, num_samples=10, num_draws=30, progress=False)
        findings = [
            Finding(
                "Active units",
                Severity.OK,
                "All 5 units are active.",
                "Burda et al., 2016",
            ),
            Finding(
                "Pareto k̂",
                Severity.CRITICAL,
                f"k̂ is above 0.7 for 31 % of the data. {NASTY}",
                "Vehtari et al., 2024",
                "A richer guide.",
            ),
            Finding(
                "Calibration",
                Severity.WARNING,
                "The ranks are not uniform.",
                "false-alarm rate 0.01",
                "Look at k̂.",
            ),
            Finding(
                "Gaps",
                Severity.NOTE,
                "Amortisation costs 0.8 nats.",
                "two standard errors",
            ),
        ]
        return Page(
            f"A run {NASTY}",
            "Three models on sixty pictures.",
            summary={
                "ELBO (nats per image)": ledger["linear, larger"].bound,
                "active units": "5 of 5",
                "bits": -1.25,
                "flag": True,
                "none": None,
            },
            posterior=posterior_table(),
            judgements=[
                Judgement("posterior", "CRITICAL", f"Do not trust it {NASTY}."),
                Judgement("model", "OK", "Nothing against it."),
            ],
            findings=findings,
            finding_figures={
                "Pareto k̂": plots.pareto_k(torch.randn(900)),
                "Calibration": plots.rank_histograms(
                    torch.randint(0, 51, (200, 6)), 50
                ),
                "Gaps": plots.gap_bars(
                    {"approximation gap": (1.2, 0.1), NASTY: (0.8, 0.2)}
                ),
            },
            ledger=ledger,
            tables={
                f"Numbers {NASTY}": Table(
                    ["what", "p", "verdict"],
                    [[NASTY, 0.5, "fine"], ["z", -1e-8, "not"]],
                )
            },
            history=history(12),
            figures={
                f"Reconstructions {NASTY}": plots.reconstructions(
                    models["linear, larger"], data
                ),
                "Latents": plots.latent_scatter(models["linear, larger"], data),
            },
            settings={"latent": 5, "lr": 4e-3, "batch_size": 200, "out": NASTY},
            command=report.command("examples.vae_mnist", {"latent": 5, "out": "a b"}),
            environment=report.environment("cpu", 7),
        )
