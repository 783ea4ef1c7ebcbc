"""Draws made elsewhere: exact ones are trusted, wrong ones are not, and limits are stated."""

import math
from importlib import import_module

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import vilvm
from vilvm.diagnostics import Severity, chains, diagnose_draws, stein, weighted_evidence
from vilvm.diagnostics._given_density import ModelDensity
from vilvm.lvm import ContractError, NotApplicable

X = torch.tensor([0.4, 1.9, 0.7, 1.2, -0.3, 2.1])
PRECISION = 0.25 + len(X)
EXACT = dist.Normal((X.sum() / PRECISION).double(), PRECISION**-0.5)
K, RATE = "Pareto k̂", "Rate"
MOMENTS, STEIN, R_HAT = (
    "Means and standard deviations",
    "Stein's identity",
    "R̂ and effective sample size",
)


def normal(x):
    """mu ~ N(0, 2), x ~ N(mu, 1); the posterior is EXACT."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def positive_and_simplex(x):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0 * (sigma + p.sum(-1)), 1.0), obs=x)


def flat(x):
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, sigma), obs=x)


def local(x):
    """z_n ~ N(0, 1), x_n ~ N(z_n, 1): one latent for each datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def two_modes(latents):
    """log density of N(−4, 1) / 2 + N(4, 1) / 2."""
    z = latents["z"]
    parts = torch.stack([dist.Normal(m, 1.0).log_prob(z) for m in (-4.0, 4.0)])
    return parts.logsumexp(0) - math.log(2)


@pytest.fixture
def replicates():
    """Requests the predictive check, which takes longer than all else."""


@pytest.fixture(autouse=True)
def _quick(request, monkeypatch):
    torch.manual_seed(0)
    if "replicates" not in request.fixturenames:
        here = import_module("vilvm.diagnostics.diagnose_draws")
        monkeypatch.setattr(here, "predictive_check", _left_out)


def _left_out(*_, **__):
    raise NotApplicable("left out of this test.")


def judged(q, num=2000, **options):
    mu = q.sample((num,))
    return diagnose_draws(normal, X, {"mu": mu}, q.log_prob(mu), **options)


# Exact draws
# --------------------------------------------------------------------------------------------


def test_exact_draws_are_trusted(replicates):
    found = judged(EXACT)
    assert found.trusted
    assert found.severity("model") < Severity.WARNING
    assert found.results[K].k.item() == 0
    assert found.num_data == len(X)
    cov = torch.eye(len(X)).double() + 4.0
    log_p = dist.MultivariateNormal(torch.zeros(len(X)).double(), cov).log_prob(
        X.double()
    )
    evidence = found.results["Evidence"]
    assert evidence.log_evidence.mean == pytest.approx(log_p.item(), abs=1e-5)
    assert evidence.gap == pytest.approx(0, abs=1e-6)
    assert "Posterior predictive check" in found.results


def test_rate_is_that_of_the_posterior():
    rate = judged(EXACT).results[RATE].rate
    kl = torch.distributions.kl_divergence(EXACT, dist.Normal(0.0, 2.0)).item()
    assert abs(rate.mean - kl) < 5 * rate.mc_se


def test_false_alarms_are_as_rare_as_stated():
    cov = torch.tensor([[1.0, 0.8], [0.8, 2.0]]).double()
    q = dist.MultivariateNormal(torch.tensor([3.0, -100.0]).double(), cov)
    gamma = dist.Gamma(torch.tensor(2.0).double(), 1.0)

    def log_joint(latents):
        return q.log_prob(latents["z"]) + gamma.log_prob(latents["s"])

    # weights of exact draws are equal, so only Stein's identity has noise
    alarms, repetitions = 0, 200
    for _ in range(repetitions):
        draws = {"z": q.sample((400,)), "s": gamma.sample((400,))}
        found = diagnose_draws(
            draws=draws, log_joint=log_joint, supports={"s": constraints.positive}
        )
        assert STEIN in found.results
        alarms += found.severity() > Severity.OK
    error = math.sqrt(repetitions * 0.01 * 0.99)
    assert alarms < repetitions * 0.01 + 5 * error


def test_nearly_exact_draws_are_trusted():
    assert judged(dist.Normal(EXACT.loc, 1.03 * EXACT.scale), 10_000).trusted


# Wrong draws
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_wrong_mean_is_distrusted(shift):
    found = judged(dist.Normal(EXACT.loc + shift * EXACT.scale, EXACT.scale))
    assert not found.trusted
    names = {f.name for f in found.findings if f.severity >= Severity.WARNING}
    assert {MOMENTS, STEIN} <= names
    side = "too high" if shift > 0 else "too low"
    assert side in found.results[STEIN].finding.verdict


@pytest.mark.parametrize(("ratio", "side"), [(0.7, "too narrow"), (1.4, "too wide")])
@pytest.mark.parametrize("weighted", [True, False])
def test_wrong_width_is_distrusted(ratio, side, weighted):
    q = dist.Normal(EXACT.loc, ratio * EXACT.scale)
    mu = q.sample((2000,))
    found = diagnose_draws(normal, X, mu, q.log_prob(mu) if weighted else None)
    assert found.severity() >= Severity.WARNING
    assert side in found.results[STEIN].finding.verdict


def test_missing_correlation_is_found_without_log_q():
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
    p = dist.MultivariateNormal(torch.zeros(2).double(), cov)
    found = diagnose_draws(
        draws={"z": torch.randn(2000, 2)}, log_joint=lambda z: p.log_prob(z["z"])
    )
    assert found.results[STEIN].finding.severity == Severity.WARNING


def test_draws_far_too_narrow_have_large_k():
    found = judged(dist.Normal(EXACT.loc, 0.3 * EXACT.scale), 20_000)
    assert found.results[K].finding.severity >= Severity.WARNING
    assert "in parts of 2 × 10,000" in found.results[K].finding.verdict
    assert found.results["Evidence"].finding.severity == Severity.NOTE


def test_few_draws_with_heavy_weights_are_distrusted():
    found = judged(dist.Normal(EXACT.loc, 0.3 * EXACT.scale), 200)
    assert not found.trusted


def test_undecided_moments_are_not_trusted():
    q = dist.StudentT(4.0, EXACT.loc, 0.9 * EXACT.scale)
    found = judged(q, 150)
    assert found.results[MOMENTS].undecided.any()
    assert not found.trusted
    assert "150 draws are too few" in found.verdict


def test_missed_mode_is_a_stated_limit():
    q = dist.Normal(torch.tensor(4.0).double(), 1.0)
    z = q.sample((2000,))
    found = diagnose_draws(draws={"z": z}, log_q=q.log_prob(z), log_joint=two_modes)
    evidence = found.results["Evidence"]
    assert evidence.log_evidence.mean == pytest.approx(-math.log(2), abs=0.01)
    assert "A mode without draws is missing" in evidence.finding.verdict
    assert "cannot show a mode" in found.results[STEIN].finding.verdict


def test_wider_draws_show_the_other_mode():
    q = dist.StudentT(3.0, torch.tensor(4.0).double(), 2.0)
    z = q.sample((20_000,))
    found = diagnose_draws(draws={"z": z}, log_q=q.log_prob(z), log_joint=two_modes)
    assert not found.trusted


def test_log_q_in_other_coordinates_has_a_negative_rate():
    q = dist.Normal(math.log(0.01), 0.1)
    u = q.sample((2000,)).double()
    draws = {
        "sigma": u.exp(),
        "p": dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])).sample((2000,)),
    }
    found = diagnose_draws(positive_and_simplex, X, draws, q.log_prob(u) - 9.0)
    assert found.results[RATE].is_negative


def test_impossible_draws_are_found():
    def log_joint(latents):
        z = latents["z"]
        return torch.where(z < 1, -0.5 * z**2, -math.inf)

    found = diagnose_draws(draws={"z": torch.randn(1000)}, log_joint=log_joint)
    assert "density is zero" in found.results[STEIN].finding.verdict
    assert not found.trusted


# Without log q
# --------------------------------------------------------------------------------------------


def test_draws_alone_are_never_trusted():
    found = diagnose_draws(normal, X, EXACT.sample((1000,)))
    assert not found.trusted
    assert found.severity() == Severity.OK
    assert "not fully examined" in found.verdict
    assert "neither log_q nor chains" in found.skipped[K]


def test_mixed_chains_are_trusted():
    found = diagnose_draws(normal, X, {"mu": EXACT.sample((4, 500))}, chains=True)
    assert found.trusted
    assert R_HAT in found.results


def test_unmixed_chains_are_distrusted():
    mu = EXACT.sample((4, 500))
    mu[0] += EXACT.scale
    found = diagnose_draws(normal, X, {"mu": mu}, chains=True)
    assert found.results[R_HAT].apart.all()
    assert not found.trusted


def test_few_effective_draws_are_a_warning():
    found = diagnose_draws(normal, X, {"mu": EXACT.sample((4, 60))}, chains=True)
    assert "effective sample size is below 400" in str(found)


def test_autocorrelation_raises_no_alarm():
    noise = torch.randn(1000, 160).double()
    u = torch.zeros_like(noise)
    for t in range(1, 1000):
        u[t] = 0.9 * u[t - 1] + math.sqrt(0.19) * noise[t]
    found = [stein(part, -part) for part in u[100:].split(4, 1)]
    alarms = sum(bool(each.differs.any()) for each in found)
    assert alarms <= 2  # with errors of independent draws most of 40 would raise one


def test_stein_averages_of_gaussians_are_known():
    u = 0.5 + 2 * torch.randn(100_000, 1).double()
    found = stein(u, -u)  # against N(0, 1)
    assert abs(found.shift.item() + 0.5 * 2) < 5 * found.shift_se.item()
    assert abs(found.width.item() - (1 - 4)) < 5 * found.width_se.item()


# Forms of draws
# --------------------------------------------------------------------------------------------


def test_constrained_latents_are_judged_in_their_own_space():
    sigma, p = dist.HalfNormal(1.0), dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0]))
    draws = {"sigma": sigma.sample((3000,)), "p": p.sample((3000,))}
    log_q = sigma.log_prob(draws["sigma"]) + p.log_prob(draws["p"])
    found = diagnose_draws(positive_and_simplex, X, draws, log_q)
    assert found.trusted, str(found)
    assert found.results[STEIN].names == ("sigma", "T⁻¹(p)[0]", "T⁻¹(p)[1]")
    wrong = draws | {"sigma": 0.7 * draws["sigma"]}
    assert not diagnose_draws(positive_and_simplex, X, wrong, log_q + 0.3567).trusted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_raw_coordinates_are_computed_in_float64(dtype):
    def regression(batch):
        x, y = batch
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1e6).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(b @ x.T, 1.0), obs=y)

    x = torch.stack([torch.ones(20), 1e4 + torch.arange(20.0)], 1)
    y = 3 * (x[:, 1] - 1e4)
    cov = torch.linalg.inv(x.double().T @ x.double() + 1e-12 * torch.eye(2).double())
    q = dist.MultivariateNormal(cov @ x.double().T @ y.double(), cov)
    b = q.sample((1000,))
    data = (x.to(dtype), y.to(dtype))
    assert diagnose_draws(regression, data, b, q.log_prob(b)).trusted


def test_flat_prior_has_no_evidence():
    shape = (len(X) - 1) / 2
    precision = dist.Gamma(shape, X.double().square().sum() / 2).sample((2000,))
    found = diagnose_draws(flat, X, {"sigma": precision**-0.5})
    assert found.results[STEIN].finding.severity == Severity.OK
    log_q = torch.zeros(2000)
    weighted = diagnose_draws(flat, X, {"sigma": precision**-0.5}, log_q)
    assert "flat" in weighted.skipped["Evidence"]
    assert "flat" in weighted.skipped[RATE]


def test_coordinates_of_flat_latents_are_logarithms():
    def model(x):
        prior = dist.ImproperUniform(constraints.positive, (), (2,))
        scales = pyro.sample("scales", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scales.sum(-1)), obs=x)

    for own, name, shape in ((flat, "sigma", (100,)), (model, "scales", (100, 2))):
        sigma = torch.rand(shape).double() + 0.1
        at = ModelDensity(own, X).at({name: sigma})
        torch.testing.assert_close(at.u, sigma.log().reshape(100, -1))
    scale = sigma.sum(1, keepdim=True)
    score = sigma * ((X.double().square().sum() / scale**2 - len(X)) / scale) + 1
    torch.testing.assert_close(at.score, score)


def test_local_latents_are_judged_jointly():
    q = dist.Normal(X.double() / 2, 0.5**0.5)
    z = q.sample((2000,))
    found = diagnose_draws(local, X, z, q.log_prob(z).sum(1))
    assert found.trusted
    assert found.results[K].k.shape == (1,)
    log_p = dist.Normal(0.0, 2**0.5).log_prob(X).sum().item()
    assert found.results["Evidence"].log_evidence.mean == pytest.approx(log_p, abs=1e-4)


def test_density_of_the_latents_is_exact():
    mu = EXACT.sample((100,))
    at = ModelDensity(normal, X).at({"mu": mu})
    prior = dist.Normal(0.0, 2.0).log_prob(mu)
    likelihood = dist.Normal(mu[:, None], 1.0).log_prob(X.double()).sum(1)
    torch.testing.assert_close(at.log_prior, prior)
    torch.testing.assert_close(at.log_joint, prior + likelihood)
    torch.testing.assert_close(
        at.score[:, 0], -PRECISION * (mu - EXACT.loc), rtol=1e-6, atol=1e-6
    )


def test_datatree_is_read_with_its_chains():
    az = pytest.importorskip("arviz")
    mu = EXACT.sample((4, 500)).numpy()
    tree = az.from_dict({"posterior": {"mu": mu, "twice": 2 * mu, "other": mu}})
    log_q = EXACT.log_prob(torch.from_numpy(mu))
    for form in (tree, tree["posterior"].to_dataset()):
        found = diagnose_draws(normal, X, form, log_q)
        assert found.trusted
        assert {R_HAT, K} <= set(found.results)


def test_deterministic_values_may_stay_among_the_draws():
    mu = EXACT.sample((4, 500))
    assert diagnose_draws(normal, X, {"twice": 2 * mu, "mu": mu}, chains=True).trusted


def test_arrays_of_any_library_give_equal_results():
    mu = EXACT.sample((1000,))
    forms = [mu, mu.numpy(), mu.tolist(), {"mu": np.asarray(mu)}]
    found = [diagnose_draws(normal, X, form).results[STEIN].z for form in forms]
    assert all(torch.equal(z, found[0]) for z in found)


def test_guide_and_parameters_of_a_pair_stay_as_they_are():
    guide = pyro.infer.autoguide.AutoNormal(normal)
    lvm = vilvm.Pair(normal, guide)
    vilvm.fit(lvm, X, steps=2)
    before = {n: v.clone() for n, v in lvm.state_dict().items()}
    mu = EXACT.sample((1000,))
    assert diagnose_draws(lvm, X, mu, EXACT.log_prob(mu)).trusted
    assert all(torch.equal(v, before[n]) for n, v in lvm.state_dict().items())
    assert all(v.dtype == before[n].dtype for n, v in lvm.state_dict().items())


def test_random_numbers_of_the_caller_stay_as_they_are():
    mu, state = EXACT.sample((500,)), torch.get_rng_state()
    first = diagnose_draws(normal, X, mu)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(diagnose_draws(normal, X, mu)) == str(first)


def test_log_joint_without_gradient_skips_stein():
    q = dist.Normal(0.0, 1.0)
    z = q.sample((1000,))
    found = diagnose_draws(
        draws={"z": z},
        log_q=q.log_prob(z),
        log_joint=lambda d: -0.5 * d["z"].detach().numpy() ** 2,
    )
    assert "no gradient" in found.skipped[STEIN]
    assert found.results[K].k.item() == 0


def test_short_budget_thins_the_draws():
    found = diagnose_draws(normal, X, EXACT.sample((200_000,)), budget=0.05)
    assert "evenly spaced" in found.cut["Draws"]


# Bad input
# --------------------------------------------------------------------------------------------

MU = torch.randn(200)


@pytest.mark.parametrize(
    ("draws", "options", "message"),
    [
        ({}, {}, "lack the latent 'mu'"),
        ({"mu": MU, "nu": MU}, {}, "no latent 'nu'"),
        ({"mu": MU[:, None]}, {}, "one draw of 'mu' has shape"),
        ({"mu": MU[:50]}, {}, "at least 100 draws; got 50"),
        ({"mu": MU[0]}, {}, "leading dimension for each draw"),
        ({"mu": MU}, {"chains": True}, "leading dimension for each chain and draw"),
        ({"mu": MU.clone().fill_(math.nan)}, {}, "not finite in 200 of 200 draws"),
        ({"mu": ["a"] * 200}, {}, "array of numbers"),
        ({"mu": MU}, {"log_q": MU[:3]}, r"one number per draw, shape \(200,\)"),
        ({"mu": MU}, {"log_q": MU / 0}, "log_q is not finite"),
        ({"mu": MU}, {"log_joint": two_modes}, "either a model and its data"),
        ({"mu": MU}, {"supports": {}}, "supports= belongs to log_joint"),
        ({"mu": MU}, {"budget": -1}, "budget"),
    ],
)
def test_bad_draws_get_a_sentence(draws, options, message):
    with pytest.raises(ValueError, match=message):
        diagnose_draws(normal, X, draws, **options)


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        ({"z": MU}, {"log_joint": lambda d: d["z"].sum()}, "one number per draw"),
        ({"z": MU}, {"log_joint": 3}, "must be a function"),
        ({"z": MU}, {"log_joint": lambda d: d["z"] * math.nan}, "NaN or"),
        (MU, {"log_joint": two_modes}, "must be a dict"),
        ({}, {"log_joint": two_modes}, "no draws"),
        ({"z": MU, "w": MU[:150]}, {"log_joint": two_modes}, "same number of draws"),
        (
            {"z": MU},
            {"log_joint": two_modes, "supports": {"z": constraints.positive}},
            "outside its support",
        ),
        (
            {"z": MU},
            {"log_joint": two_modes, "supports": {"y": None}},
            "supports names",
        ),
        ({"z": MU}, {"log_joint": two_modes, "data": X}, "no data to pass"),
        ({"z": MU}, {}, "either a model"),
    ],
)
def test_bad_log_joint_gets_a_sentence(latents, options, message):
    with pytest.raises(ValueError, match=message):
        diagnose_draws(draws=latents, **options)


def test_draws_outside_the_support_get_a_sentence():
    sigma = torch.rand(200) + 0.1
    sigma[7] = -1.0
    with pytest.raises(
        ValueError, match=r"'sigma' is outside its support.*1 of 200.*draw 7"
    ):
        diagnose_draws(flat, X, {"sigma": sigma})


def test_discrete_latent_gets_a_sentence():
    def mixture(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    with pytest.raises(ContractError, match="'c' is discrete; sum over it"):
        diagnose_draws(mixture, X, torch.zeros(200, 6))


@pytest.mark.parametrize("model", [3, (normal, normal)])
def test_bad_model_gets_a_sentence(model):
    with pytest.raises(ContractError, match="diagnose_draws"):
        diagnose_draws(model, X, MU)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stein(MU, MU),
        lambda: stein(torch.zeros(99, 1), torch.zeros(99, 1)),
        lambda: stein(torch.zeros(200, 1), torch.zeros(200, 1), names=["a", "b"]),
        lambda: chains(MU),
        lambda: chains(torch.zeros(2, 9, 1), names=[]),
        lambda: weighted_evidence(torch.zeros(200, 2)),
    ],
)
def test_bad_arrays_get_a_sentence(call):
    with pytest.raises(ValueError, match=r"must|needs"):
        call()


def test_latents_may_share_a_plate():
    def model(y):
        with pyro.plate("group", 2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal((a + b).sum(-1), 1.0), obs=y)

    draws = {"a": torch.randn(200, 2), "b": torch.randn(200, 2)}
    assert not vilvm.diagnose_draws(model, torch.zeros(5), draws, budget=5).trusted
