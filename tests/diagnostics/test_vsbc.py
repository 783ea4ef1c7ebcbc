"""Calibration by refitting, on the mean of a Gaussian.

Given n data, its posterior is N(n x̄ / (n + 1), 1 / (n + 1)).
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import vilvm
from vilvm.diagnostics.finding import Severity
from vilvm.diagnostics.vsbc import vsbc
from vilvm.lvm import ContractError

N = 5
WIDTH = (N + 1) ** -0.5
# With this rate, one step of gradient descent reaches the optimum, up to gradient noise.
NEWTON = {
    "steps": 4,
    "optimizer": partial(torch.optim.SGD, lr=1 / (N + 1)),
    "objective": Trace_ELBO(
        num_particles=300, vectorize_particles=True, max_plate_nesting=1
    ),
}


def mean_model(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def build(scale=WIDTH, start=0.0):
    """A guide of fixed width that is fitted to one data set."""

    def guide(x):
        pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(start)), scale))

    return vilvm.Pair(mean_model, guide)


@pytest.mark.slow
def test_guide_of_the_right_width_passes():
    found = vsbc(build, torch.zeros(N), 100, fit_options=NEWTON, false_alarm=1e-6)
    assert found.ranks.shape == (100, 1)
    assert found.names == ("m",)
    assert found.finding.severity == Severity.OK
    held = found.coverage
    error = (held.levels * (1 - held.levels) / 100).sqrt()
    assert ((held.shares[:, 0] - held.levels).abs() < 5 * error).all()


@pytest.mark.slow
def test_half_width_guide_is_narrow_not_shifted():
    found = vsbc(partial(build, WIDTH / 2), torch.zeros(N), 100, fit_options=NEWTON)
    assert found.finding.severity == Severity.CRITICAL
    assert "m: the posterior is too narrow" in found.finding.verdict
    assert "no component is shifted." in found.finding.verdict


@pytest.mark.slow
def test_unfinished_fit_is_shifted():
    found = vsbc(
        partial(build, start=2.0),
        torch.zeros(N),
        40,
        fit_options={**NEWTON, "steps": 1, "optimizer": torch.optim.Adam},
    )
    assert found.finding.severity == Severity.CRITICAL
    assert "m: the posterior lies too high" in found.finding.verdict
    assert "shifted components: m." in found.finding.verdict


def test_covariates_are_kept_and_local_latents_ranked():
    c = torch.full((12,), 0.5)

    def model(batch):
        x, c = batch
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, c), obs=x)

    def make():
        return vilvm.Pair(model, AutoNormal(model))

    options = {"fit_options": {"steps": 2}, "rebuild": lambda draws: (draws["x"], c)}
    found = vsbc(make, (torch.zeros(12), c), 2, 9, **options)
    assert found.names == (
        "m",
        *(f"z[{i}]" for i in range(10)),
    )  # the latents of the first ten data
    assert torch.equal(
        found.ranks, vsbc(make, (torch.zeros(12), c), 2, 9, **options).ranks
    )
    assert torch.equal(
        found.ranks,
        vsbc(make, (torch.zeros(12), c), 2, 9, fit_options={"steps": 2}).ranks,
    )


def test_point_guide_is_refused():
    def guide(x):
        pyro.sample("m", dist.Delta(pyro.param("loc", torch.tensor(0.0))))

    with pytest.raises(ContractError, match="no spread to calibrate"):
        vsbc(
            lambda: vilvm.Pair(mean_model, guide),
            torch.zeros(N),
            2,
            fit_options={"steps": 1},
        )
    with pytest.raises(ValueError, match="build must be a function"):
        vsbc(build(), torch.zeros(N), 2, fit_options={"steps": 1})


@pytest.mark.slow
def test_only_autoguide_trained_long_enough_passes():
    def make():
        return vilvm.Pair(mean_model, AutoNormal(mean_model))

    decaying = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=300)
    options = {
        "steps": 300,
        "optimizer": partial(torch.optim.Adam, lr=0.05),
        "scheduler": decaying,
    }
    assert (
        vsbc(
            make, torch.zeros(N), 60, fit_options=options, false_alarm=1e-6
        ).finding.severity
        == Severity.OK
    )
    assert (
        vsbc(make, torch.zeros(N), 60, fit_options={"steps": 3}).finding.severity
        == Severity.CRITICAL
    )


def test_building_and_simulation_have_separate_seeds():
    starts, truths = [], []

    def build():
        start = torch.randn(())
        starts.append(start.item())

        def model(x):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            truths.append(m.item())
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(m, 1.0), obs=x)

        return vilvm.Pair(
            model,
            lambda x: pyro.sample("m", dist.Normal(pyro.param("loc", start), 1.0)),
        )

    vsbc(build, torch.zeros(N), 5, 3, fit_options={"steps": 1})
    assert not set(starts) & set(truths)
