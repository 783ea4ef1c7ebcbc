"""Rungs of inference give the posterior of models whose posterior is known.

Statistical tests compare in Monte Carlo standard errors: |z| < 5, which fails once in 1.7 million
comparisons.
"""

import pyro
import pyro.distributions as dist
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
from vilvm.models.eight_schools import EightSchools, eight_schools

EXACT = EightSchools().exact_log_evidence(eight_schools().x).item()


@pytest.mark.parametrize("method", [laplace, fit_gaussian])
def test_gaussian_posterior_in_raw_coordinates_is_exact(method):
    data = raw_data()
    found = moments(method(regression, data).lvm.guide)
    assert max(errors_of(found, exact_regression(*data))) < 1e-6


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_pathfinder_is_exact_to_its_tolerance(columns):
    # L-BFGS builds the inverse Hessian from its steps, and stops at a relative gain of 1e-8. Its
    # units must not differ by many orders of magnitude.
    x = torch.randn(40, columns, dtype=torch.float64)
    y = x.sum(1) + torch.randn(40, dtype=torch.float64)
    guide = pathfinder(unit_regression, (x, y)).lvm.guide
    assert max(errors_of(moments(guide), exact_unit(x, y))) < 0.05


def unit_regression(batch):
    x, y = batch
    dim = x.shape[1]
    beta = pyro.sample("beta", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), 1.0), obs=y)


def exact_unit(x, y):
    covariance = torch.linalg.inv(x.mT @ x + torch.eye(x.shape[1]).double())
    from tests.inference.exact import Normal
    return Normal(covariance @ x.mT @ y, covariance, 0.0)


def test_evidence_of_gaussian_posterior_is_exact():
    data = raw_data()
    found = vilvm.infer(regression, data, progress=False)
    assert found.trusted
    exact = exact_regression(*data).log_evidence
    assert abs(found.log_evidence.mean - exact) < 1e-6 * abs(exact)


if __name__ == "__main__":
    import time
    for c in (1,2,3):
        x = torch.randn(40, c, dtype=torch.float64)
        y = x.sum(1) + torch.randn(40, dtype=torch.float64)
        t=time.time()
        guide = pathfinder(unit_regression, (x, y)).lvm.guide
        for q in guide.parts: print(c, errors_of(moments(guide, q), exact_unit(x, y)), time.time()-t)
    for centred in (True, False):
        m = EightSchools(centred=centred)
        t=time.process_time(); p = vilvm.infer(m, eight_schools(), progress=False); print(p.rung,p.k,p.log_evidence, EXACT, time.process_time()-t,p.draws.keys()); print(*p.findings,sep="\n"); print([(h.name,h.seconds) for h in p.history])
