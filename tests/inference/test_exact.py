"""Rungs of inference give a Gaussian posterior exactly, in raw coordinates too."""

import pytest
import torch

import vilvm
from tests.inference.exact import (
    errors_of,
    exact_mean,
    exact_regression,
    mean_model,
    moments,
    raw_data,
    regression,
)
from vilvm.inference import fit_gaussian, laplace, pathfinder

Y = torch.tensor([0.5, 1.5, 3.0])


@pytest.mark.parametrize("method", [laplace, fit_gaussian])
def test_gaussian_posterior_in_raw_coordinates_is_exact(method):
    data = raw_data()
    found = moments(method(regression, data).lvm.guide)
    assert max(errors_of(found, exact_regression(*data))) < 1e-6


@pytest.mark.parametrize("method", [laplace, fit_gaussian, pathfinder])
def test_posterior_of_a_mean_is_exact(method):
    guide = method(mean_model, Y).lvm.guide
    for part in guide.parts:
        assert max(errors_of(moments(guide, part), exact_mean(Y))) < 1e-9


def unit_data(columns):
    x = torch.randn(40, columns, dtype=torch.float64)
    return x, x.sum(1) + 3 * torch.randn(40, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [2, 3])
def test_pathfinder_is_near_a_gaussian_posterior_of_one_scale(columns):
    # L-BFGS learns the covariance from at most six steps, and each path stops at a relative gain
    # of 1e-8: the best component has the means, its variances are right to a half only.
    data = unit_data(columns)
    guide = pathfinder(regression, data).lvm.guide
    best = guide.parts[guide.log_probs.argmax()]
    mean, covariance = errors_of(moments(guide, best), exact_regression(*data))
    assert mean < 0.1
    assert covariance < 0.5


def test_evidence_of_gaussian_posterior_is_exact():
    data = raw_data()
    found = vilvm.infer(regression, data, progress=False)
    assert found.trusted
    exact = exact_regression(*data)
    assert abs(found.log_evidence.mean - exact.log_evidence) < 1e-6 * abs(
        exact.log_evidence
    )
    draws = found.draws["beta"]
    z = (draws.mean(0) - exact.mean) / (exact.covariance.diagonal() / found.ess).sqrt()
    assert z.abs().max() < 5  # fails once in 210,000 runs
