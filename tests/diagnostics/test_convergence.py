"""The level of trend tests, R̂ by hand, and fits stopped too early or late enough."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import vilvm
from vilvm.diagnostics._trend import trend
from vilvm.diagnostics.convergence import Converged, convergence, split_rhat
from vilvm.diagnostics.finding import Severity
from vilvm.models.ppca import PPCA
from vilvm.objectives import Annealed
from vilvm.training.history import History, Record
from vilvm.training.result import Event


def noise(n, phi, series, seed=0):
    """Autoregressive noise with unit variance, shape (series, n)."""
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((n, series))
    for t in range(1, n):
        y[t] = phi * y[t - 1] + (1 - phi**2) ** 0.5 * y[t]
    return y.T


@pytest.mark.parametrize("phi", [-0.3, 0.4, 0.8, 0.95])
@pytest.mark.parametrize("n", [8, 20, 60])
def test_false_alarms_come_at_the_stated_rate(n, phi):
    found = [trend(np.arange(n) / 3, y, 0.05) for y in noise(n, phi, 500)]
    most = 500 * 0.05 + 5 * (500 * 0.05 * 0.95) ** 0.5
    assert sum(f.rising < 0.05 for f in found) <= most
    assert sum(f.falling < 0.05 for f in found) <= most
    assert sum(f.lower > 0 for f in found) <= most
    assert sum(f.upper < 0 for f in found) <= most


def test_trend_is_detected_and_limits_contain_it():
    times = np.arange(30) / 3
    found = [trend(times, 0.5 * times + 0.2 * y, 0.01) for y in noise(30, 0.3, 200)]
    assert np.mean([f.rising < 0.01 for f in found]) > 0.95
    assert np.mean([f.lower < 0.5 < f.upper for f in found]) > 0.95
    assert np.mean([f.slope for f in found]) == pytest.approx(0.5, abs=0.05)


def test_flattening_curve_is_a_trend_while_rising():
    times = np.arange(20.0)
    assert (
        trend(times, -np.exp(-times / 15) + 0.02 * noise(20, 0.0, 1)[0]).rising < 0.01
    )


def test_trend_is_invariant_to_level_and_units():
    times, y = np.arange(20.0), noise(20, 0.5, 1)[0] + 0.1 * np.arange(20.0)
    one, other = trend(times, y), trend(10 * times, 3 * y - 1e4)
    assert one.rising == other.rising
    assert other.slope == pytest.approx(0.3 * one.slope)
    constant = trend(times, np.full(20, 3.0))
    assert constant.slope == 0.0
    assert constant.rising > 0.01


def history(elbo, *, validation=None, rates=None, epochs_a_record=1, first=0):
    def record(i):
        held_out = np.nan if validation is None else float(validation[i])
        return Record(
            epoch=(first + i + 1) * epochs_a_record,
            step=50 * (first + i + 1),
            elbo=float(elbo[i]),
            validation_elbo=held_out,
            validation_se=0.1,
            rate=1.0,
            distortion=1.0,
            learning_rate=1e-3 if rates is None else float(rates[i]),
            gradient_norm=1.0,
            skipped=0,
            seconds=1.0,
            data_per_second=1.0,
        )

    return History([record(i) for i in range(len(elbo))])


flat, rising = (
    noise(40, 0.0, 1)[0] * 0.1,
    0.1 * np.arange(40) + noise(40, 0.0, 1)[0] * 0.1,
)


def test_slope_and_gain_are_per_epoch():
    found = convergence(history(rising, epochs_a_record=5))
    assert found.trend.slope == pytest.approx(0.02, rel=0.2)
    assert found.epochs == 95
    assert found.gain == pytest.approx(1.9, rel=0.2)
    assert found.finding.severity == Severity.WARNING
    assert "still improving" in found.finding.verdict


def test_levelled_off_after_a_rise():
    found = convergence(history(np.concatenate([rising, 4 + flat])))
    assert found.num_records == 40
    assert found.finding.severity == Severity.OK
    assert "levelled off" in found.finding.verdict


def test_rise_below_the_tolerance_is_accepted():
    tiny = history(rising / 1000)
    assert convergence(tiny).finding.severity == Severity.OK
    assert convergence(tiny, tolerance=1e-4).finding.severity == Severity.WARNING


def test_validation_elbo_is_used_if_present():
    assert convergence(history(rising, validation=flat)).finding.severity == Severity.OK
    overfitted = convergence(history(rising, validation=-rising)).finding
    assert overfitted.severity == Severity.NOTE
    assert "overfits" in overfitted.advice
    assert convergence(history(-rising)).finding.severity == Severity.WARNING


def test_flattening_by_schedule_is_reported():
    rates = np.concatenate([np.full(40, 1e-3), np.full(40, 1e-5)])
    early = convergence(
        history(np.concatenate([rising, 4 + flat]), rates=rates)
    ).finding
    assert early.severity == Severity.NOTE
    assert "before, it was gaining 0.1" in early.verdict
    # The fall itself raises the ELBO.
    late = convergence(history(np.concatenate([flat, 1 + flat]), rates=rates)).finding
    assert late.severity == Severity.OK


def test_warmup_records_are_left_out():
    log = history(np.concatenate([-rising, -4 + flat[:10]]))
    assert convergence(log).finding.severity == Severity.WARNING
    assert convergence(log, start=2000).finding.severity == Severity.OK
    lvm, x = PPCA(4, 1), torch.randn(20, 4)
    fitted = vilvm.fit(lvm, x, steps=250, objective=Annealed(Trace_ELBO(), warmup=100))
    assert convergence(fitted).num_records == 3


def test_few_records_are_not_judged():
    found = convergence(history(rising[:5]))
    assert found.trend is None
    assert np.isnan(found.gain)
    assert found.finding.severity == Severity.NOTE
    assert "too few" in found.finding.verdict
    assert "too few" in convergence(History()).finding.verdict
    with pytest.raises(ValueError, match="at least 8"):
        trend(np.arange(4.0), np.arange(4.0))
    with pytest.raises(ValueError, match="tolerance"):
        convergence(history(rising), tolerance=0.0)


def test_rhat_equals_that_of_two_chains():
    x = torch.randn(21, 4).double()
    x[:, 3] += torch.arange(21)
    halves = torch.stack([x[1:11], x[11:]])
    within, between = halves.var(1).mean(0), 10 * halves.mean(1).var(0)
    torch.testing.assert_close(
        split_rhat(x), ((9 / 10 * within + between / 10) / within).sqrt()
    )
    assert split_rhat(torch.ones(20, 2)).tolist() == [1.0, 1.0]
    assert split_rhat(
        torch.cat([torch.zeros(10, 1), torch.ones(10, 1)])
    ).item() == float("inf")


# The callback


class Parameters(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(n))


def run_rule(rule, elbo, iterates, **columns):
    """The step at which the rule stops training, and the model."""
    lvm = Parameters(iterates.shape[1])
    for i in range(len(elbo)):
        with torch.no_grad():
            lvm.theta.copy_(iterates[i])
        if rule(
            Event(
                lvm,
                history(elbo[: i + 1], **{k: v[: i + 1] for k, v in columns.items()}),
            )
        ):
            return i + 1, lvm
    return None, lvm


def test_the_rule_stops_when_both_have_settled():
    still, moving = (
        torch.randn(40, 50),
        torch.randn(40, 50) + torch.arange(40.0)[:, None],
    )
    assert run_rule(Converged(), flat, still)[0] is not None
    assert run_rule(Converged(), rising, still)[0] is None
    assert run_rule(Converged(), flat, moving)[0] is None
    assert (
        run_rule(Converged(share=0.4), flat, torch.cat([still, moving], -1))[0]
        is not None
    )
    assert (
        run_rule(Converged(share=0.7), flat, torch.cat([still, moving], -1))[0] is None
    )
    assert run_rule(Converged(start=50 * 30), flat, still)[0] is None


def test_averaged_parameters_are_written_if_requested():
    iterates = torch.randn(40, 2000)
    stopped, lvm = run_rule(Converged(averaged=True), flat, iterates)
    torch.testing.assert_close(
        lvm.theta.detach(), iterates[stopped - 20 : stopped].mean(0)
    )
    again, lvm = run_rule(Converged(), flat, iterates)
    assert again == stopped
    assert torch.equal(lvm.theta.detach(), iterates[stopped - 1])
    with pytest.raises(ValueError, match="of no use with validation"):
        run_rule(Converged(averaged=True), flat, iterates, validation=flat)


@pytest.mark.parametrize(
    "bad",
    [
        {"window": 10},
        {"rhat": 1.0},
        {"share": 0.0},
        {"tolerance": 0.0},
        {"false_alarm": 0.7},
    ],
)
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match="Converged"):
        Converged(**bad)


# Fits


def conjugate():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(-2.0))
        log_scale = pyro.param("log_scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, log_scale.exp()))

    return vilvm.Pair(model, guide)


def fitted(lvm, x, steps, rate, **options):
    return vilvm.fit(
        lvm, x, steps=steps, optimizer=partial(torch.optim.Adam, lr=rate), **options
    )


@pytest.mark.slow
def test_training_stops_at_the_optimum():
    x = torch.randn(100)
    lvm, rule = conjugate(), Converged(averaged=True)
    run = fitted(lvm, x, 5000, 0.02, callbacks=[rule])
    assert run.stopped == "callback"
    # log p(x) − ELBO at slope a and scale s, E KL(q ‖ p(z | x)), is zero at a = ½ and s = √½.
    with torch.no_grad():
        a, s = lvm.pyro_params["slope"], lvm.pyro_params["log_scale"].exp()
        gap = 0.5 * (
            2 * s**2 + 2 * (a - 0.5) ** 2 * x.square().mean() - 1 - (2 * s**2).log()
        )
    assert gap < rule.tolerance
    early = conjugate()
    assert fitted(early, x, 1500, 1e-4, callbacks=[Converged()]).stopped == "finished"


def linear_data():
    basis = torch.randn(3, 8) * torch.tensor([[3.0], [2.0], [1.0]])
    return torch.randn(400, 3) @ basis + 0.5 * torch.randn(400, 8)


@pytest.mark.slow
def test_ppca_fit_stopped_too_early_is_flagged():
    x = linear_data()
    best = PPCA(8, 3).maximise(x).exact_log_evidence(x).mean().item()
    lvm = PPCA(8, 3)
    found = convergence(fitted(lvm, x, 500, 3e-3))
    assert best - lvm.exact_log_evidence(x).mean().item() > 1  # nats left to gain
    assert found.finding.severity == Severity.WARNING


@pytest.mark.slow
def test_fit_starting_at_the_optimum_is_not_flagged():
    x = linear_data()
    found = convergence(fitted(PPCA(8, 3).maximise(x), x, 800, 1e-3))
    assert found.finding.severity == Severity.OK


@pytest.mark.slow
def test_a_long_fit_of_ppca_is_not_flagged():
    x = linear_data()
    best = PPCA(8, 3).maximise(x).exact_log_evidence(x).mean().item()
    lvm = PPCA(8, 3)
    found = convergence(fitted(lvm, x, 5000, 0.05))
    assert best - lvm.exact_log_evidence(x).mean().item() < 0.3
    assert not found.improving
    assert not found.falling
