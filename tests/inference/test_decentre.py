"""Latents of hierarchical priors in standard units have the same joint distribution."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from tests.inference.exact import curved, groups, mean_model, mixture, mixture_data
from vilvm.inference._decentre import SUFFIX, decentred
from vilvm.inference._preparation import own_model, prepare_data, target_of
from vilvm.models.eight_schools import EightSchools, eight_schools

TRIL = torch.tensor(
    [[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.3, 0.2, 0.7]], dtype=torch.float64
)
GROUPS = (torch.linspace(-2, 2, 10), torch.arange(10) % 5)


def correlated(y):
    """Effects with a joint Gaussian prior, whose scale is a latent."""
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    loc = mu[..., None].expand(*mu.shape, 3)
    tril = tau[..., None, None] * TRIL
    theta = pyro.sample("theta", dist.MultivariateNormal(loc, scale_tril=tril))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)


def both_targets(model, data):
    plain, batch = own_model(model), prepare_data(data)
    other = decentred(plain, batch)
    assert other is not None
    return target_of(plain, batch), target_of(other, batch)


def order(target):
    return [n.removesuffix(SUFFIX) for n in target.joint.layout.latents]


def test_joint_density_of_groups_is_the_same():
    centred, standard = both_targets(groups, GROUPS)
    assert order(centred) == order(standard) == ["mu", "tau", "theta"]
    u = torch.randn(4, centred.dim, dtype=torch.float64)
    mu, log_tau, eta = u[:, :1], u[:, 1:2], u[:, 2:]
    theta = mu + log_tau.exp() * eta
    exact = centred(torch.cat([mu, log_tau, theta], 1)) + 5 * log_tau[:, 0]
    assert torch.allclose(standard(u), exact)


def test_joint_density_of_multivariate_normals_is_the_same():
    centred, standard = both_targets(correlated, torch.randn(4, 3))
    assert order(centred) == order(standard) == ["tau", "mu", "theta"]
    u = torch.randn(4, centred.dim, dtype=torch.float64)
    log_tau, mu, eta = u[:, :1], u[:, 1:2], u[:, 2:]
    theta = mu + log_tau.exp() * (eta @ TRIL.T)
    log_det = 3 * log_tau[:, 0] + TRIL.diagonal().log().sum()
    assert torch.allclose(
        standard(u), centred(torch.cat([log_tau, mu, theta], 1)) + log_det
    )


def test_model_without_hierarchies_has_nothing_to_change():
    y = torch.tensor([0.5, 1.5])
    for model, data in ((mean_model, y), (curved, y), (mixture, mixture_data())):
        assert decentred(model, prepare_data(data)) is None


def test_location_alone_is_no_hierarchy():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    assert decentred(model, torch.ones(3).double()) is None


def test_model_that_fails_has_nothing_to_change():
    def model(y):
        raise ValueError("no")

    assert decentred(model, torch.ones(3).double()) is None


def deviations(y):
    """Effects of which the data say little, with names that Pyro's standard units would change."""
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("group", 3):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
    twice = pyro.deterministic("twice", 2 * theta, event_dim=0)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(twice.sum(-1, keepdim=True), 2.0), obs=y)


@pytest.mark.slow
def test_draws_have_the_names_of_the_model():
    found = vilvm.infer(deviations, torch.tensor([0.5, 1.0]), progress=False, budget=30)
    latents = vilvm.posterior(found.lvm, found.data, 2)
    assert "theta" + SUFFIX in latents  # standard units are the better coordinates here
    assert set(found.draws) == {"tau", "theta", "twice"}
    assert found.draws["theta"].shape == (len(found.draws["tau"]), 3)
    assert torch.allclose(found.draws["twice"], 2 * found.draws["theta"])
    assert not any(SUFFIX in name for name in found.summary())


@pytest.mark.slow
def test_multivariate_latents_keep_their_name():
    found = vilvm.infer(correlated, torch.zeros(1, 3), progress=False, budget=30)
    assert set(found.draws) == {"tau", "mu", "theta"}
    assert found.draws["theta"].shape[1:] == (3,)


def by_index(name):
    """The summary's name of a scalar that posteriordb counts from 1."""
    if "[" not in name:
        return name
    return f"theta[{int(name[6:-1]) - 1}]"


@pytest.mark.slow
@pytest.mark.parametrize("centred", [True, False])
def test_eight_schools_have_their_exact_evidence_and_moments(centred):
    lvm, data = EightSchools(centred=centred), eight_schools()
    found = vilvm.infer(lvm, data, progress=False)
    assert found.trusted
    exact = lvm.exact_log_evidence(data.x).item()
    evidence = found.log_evidence
    assert (
        abs(evidence.mean - exact) < 5 * evidence.mc_se
    )  # fails once in 1.7 million runs
    assert evidence.mc_se < 0.05
    moments, rows = lvm.exact_moments(data.x), found.summary()
    for name in moments.mean:
        row, mean, sd = (
            rows[by_index(name)],
            moments.mean[name].item(),
            moments.sd[name].item(),
        )
        assert (
            abs(row.mean - mean) < 5 * sd / row.ess**0.5
        )  # fails once in 170,000 runs
        assert abs(row.sd / sd - 1) < 0.1
