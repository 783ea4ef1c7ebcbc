"""The joint density over unconstrained latents, compared with closed forms and quadrature."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

import vilvm
from vilvm.guides import init_to_origin
from vilvm.models.ppca import PPCA
from vilvm.weights.log_joint import LogJoint

X = torch.tensor([0.4, 1.5, 0.9])


def scales(x):
    """A positive and a simplex-valued local latent."""
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0])))
        pyro.sample("x", dist.Normal(p[..., 0], s), obs=x)


def scales_of(x):
    with pyro.plate("data", len(x)):
        pyro.sample("s", dist.Gamma(2.0, 1.0 + x))
        pyro.sample("p", dist.Dirichlet(torch.tensor([1.5, 1.5])))


def shared(x):
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("groups", 2, dim=-2):
        m = pyro.sample("m", dist.Normal(0.0, scale))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)


@pytest.mark.parametrize("base", ["guide", "prior"])
def test_densities_of_a_linear_gaussian_model_are_exact(base):
    lvm = PPCA(4, 2)
    x = torch.randn(5, 4)
    joint = LogJoint(lvm, x, base)
    z = joint.draw(7)
    assert z.shape == (7, 5, 2)
    found = joint(z)
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z)
    likelihood = (
        dist.Normal(z @ lvm.W.T + lvm.b, lvm.log_sigma.exp()).to_event(1).log_prob(x)
    )
    guide = dist.Normal((x - lvm.b) @ lvm.V.T, lvm.log_s.exp()).to_event(1).log_prob(z)
    torch.testing.assert_close(
        found.target, (prior + likelihood).double(), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(
        found.base, (prior if base == "prior" else guide).double(), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(joint.unconstrained(joint.latents(z)), z)


@pytest.mark.parametrize("base", ["guide", "prior"])
def test_densities_of_constrained_latents_include_the_jacobian(base):
    torch.manual_seed(0)
    joint = LogJoint(vilvm.Pair(scales, scales_of), X, base)
    side = torch.linspace(-9, 9, 400, dtype=torch.float64)
    u = torch.cartesian_prod(side, side)[:, None, :].expand(-1, len(X), -1)
    cell = (side[1] - side[0]).log() * 2
    found = joint(u)
    torch.testing.assert_close(
        (found.base.logsumexp(0) + cell).exp(),
        torch.ones(3, dtype=torch.float64),
        rtol=1e-3,
        atol=1e-3,
    )
    # The evidence in the latents' own coordinates.
    s, p = (
        torch.exp(torch.linspace(-4, 4, 600, dtype=torch.float64)),
        torch.linspace(1e-4, 1 - 1e-4, 600, dtype=torch.float64),
    )
    log_s = (
        dist.LogNormal(0.0, 0.5).log_prob(s)
        + s.log()
        + (8 / 599 * torch.ones(())).log()
    )
    log_p = dist.Beta(2.0, 3.0).log_prob(p) + (p[1] - p[0]).log()
    grid = (
        dist.Normal(p[:, None], s[:, None, None]).log_prob(X.double())
        + log_s[:, None, None]
        + log_p[:, None]
    )
    torch.testing.assert_close(
        found.target.logsumexp(0) + cell,
        grid.flatten(0, 1).logsumexp(0),
        rtol=2e-3,
        atol=2e-3,
    )
    drawn = joint.draw(4)
    torch.testing.assert_close(
        joint.unconstrained(joint.latents(drawn)), drawn, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
def test_target_over_base_equals_the_log_weight(auto):
    torch.manual_seed(0)
    lvm = vilvm.Pair(shared, auto(shared))
    joint = LogJoint(lvm, X)
    u = joint.draw(6)
    assert u.shape == (6, 1, 3)
    latents, found = joint.latents(u), joint(u)
    assert latents["scale"].shape == (6,)
    assert latents["m"].shape == (6, 2)
    assert (latents["scale"] > 0).all()

    def fixed(x):  # the log-weight of the same latents, computed by hand
        scale, m = latents["scale"][:, None], latents["m"]
        prior = dist.HalfCauchy(1.0).log_prob(latents["scale"]) + dist.Normal(
            0.0, scale
        ).log_prob(m).sum(-1)
        return prior + dist.Normal(m[..., None], 1.0).log_prob(x).sum((-1, -2))

    log_scale = latents["scale"].log()  # its u
    torch.testing.assert_close(
        found.target[:, 0], (fixed(X) + log_scale).double(), rtol=1e-5, atol=1e-4
    )
    weights = vilvm.log_weights(lvm, X, 4000).log_weight
    ratios = torch.cat([(d.target - d.base)[:, 0] for d in [joint(joint.draw(4000))]])
    error = ((weights.var() + ratios.var()) / 4000) ** 0.5
    assert abs(weights.mean() - ratios.mean()) < 5 * error


def test_posterior_drops_plates_around_other_latents_only():
    assert vilvm.posterior(vilvm.Pair(shared, AutoNormal(shared)), X, 6)[
        "scale"
    ].shape == (6,)


def test_gradient_of_each_chain_and_datum_is_independent():
    joint = LogJoint(PPCA(4, 2), torch.randn(5, 4))
    u = joint.draw(3).requires_grad_()
    (together,) = torch.autograd.grad(joint(u).target.sum(), u)
    (alone,) = torch.autograd.grad(joint(u).target[1, 2], u)
    torch.testing.assert_close(together[1, 2], alone[1, 2])
    assert not alone[0].any()
    assert not alone[1, [0, 1, 3, 4]].any()


@config_enumerate
def labelled(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)


def test_log_joint_sums_over_enumerated_latents():
    guide = AutoNormal(poutine.block(labelled, expose=["z"]))
    joint = LogJoint(vilvm.Pair(labelled, guide), X, "prior")
    z = joint.draw(6)
    log_x = (
        torch.tensor([0.3, 0.7]).log()
        + dist.Normal(z + torch.tensor([0.0, 1.0]), 1.0).log_prob(X[:, None])
    ).logsumexp(-1)
    found = joint(z)
    torch.testing.assert_close(
        found.target - found.base, log_x.double(), rtol=1e-5, atol=1e-5
    )


def drawing_labels(x):
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("lvm", "sentence"),
    [
        (
            lambda: vilvm.Pair(labelled, drawing_labels),
            "latent 'k' is discrete, and chains move continuous ones only",
        ),
        (
            lambda: vilvm.Pair(shared, AutoDelta(shared)),
            "latent 'scale' has a degenerate guide",
        ),
    ],
)
def test_latents_that_no_chain_can_move_are_refused(lvm, sentence):
    with pytest.raises(vilvm.ContractError, match=sentence):
        LogJoint(lvm(), X)


def test_latents_computed_by_the_guide_cannot_be_inverted():
    joint = LogJoint(vilvm.Pair(shared, AutoMultivariateNormal(shared)), X)
    with pytest.raises(vilvm.ContractError, match="start from the prior"):
        joint.unconstrained(joint.latents(joint.draw(1)))


def shifted(x):
    """A latent above another one; torch reports the whole line as its support."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        above = dist.TransformedDistribution(
            dist.Exponential(2.0), dist.transforms.AffineTransform(z.unsqueeze(-1), 1.0)
        )
        y = pyro.sample("y", above.to_event(1))
        pyro.sample("x", dist.Normal(y.squeeze(-1), 0.5), obs=x)


def below(x):
    """A latent between zero and another one."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.Uniform(0.0, z.exp()))
        pyro.sample("x", dist.Normal(y, 0.5), obs=x)


@pytest.mark.parametrize("base", ["guide", "prior"])
@pytest.mark.parametrize("model", [shifted, below])
def test_support_that_depends_on_another_latent(model, base):
    torch.manual_seed(0)
    joint = LogJoint(vilvm.Pair(model, poutine.block(model, hide=["x"])), X, base)
    drawn = joint.draw(4)
    torch.testing.assert_close(
        joint.unconstrained(joint.latents(drawn)), drawn, rtol=1e-3, atol=1e-3
    )
    side = torch.linspace(-9, 9, 400, dtype=torch.float64)
    u = torch.cartesian_prod(side, side)[:, None, :].expand(-1, len(X), -1)
    cell = (side[1] - side[0]).log() * 2
    found = joint(u)
    torch.testing.assert_close(
        (found.base.logsumexp(0) + cell).exp(),
        torch.ones(3, dtype=torch.float64),
        rtol=2e-3,
        atol=2e-3,
    )
    # The evidence over z and the quantiles of y given z.
    z, quantile = (
        torch.linspace(-6, 6, 400, dtype=torch.float64)[:, None],
        (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000,
    )
    y = z - (1 - quantile).log() / 2 if model is shifted else z.exp() * quantile
    grid = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(y, 0.5).log_prob(
        X.double()[:, None, None]
    )
    exact = (
        grid.flatten(1).logsumexp(1)
        + (z[1, 0] - z[0, 0]).log()
        - torch.tensor(2000.0).log()
    )
    torch.testing.assert_close(
        found.target.logsumexp(0) + cell, exact, rtol=2e-3, atol=2e-3
    )


def around(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.ProjectedNormal(torch.ones(2)))
        pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)


def test_support_without_a_bijection_is_refused():
    lvm = vilvm.Pair(around, poutine.block(around, hide=["x"]))
    with pytest.raises(
        vilvm.ContractError,
        match=r"Latent 'z' is ProjectedNormal, and no bijection from .* to its support",
    ) as caught:
        LogJoint(lvm, X)
    assert "Trace" not in str(caught.value)


def test_latents_of_another_shape_are_refused():
    joint = LogJoint(vilvm.Pair(shared, poutine.block(shared, hide=["x"])), X, "prior")
    with pytest.raises(
        vilvm.ContractError,
        match=r"'m' was given draws of shape \(3,\), and its draws in the model have shape \(2,\)",
    ):
        joint.unconstrained({"scale": torch.ones(1), "m": torch.zeros(1, 3)})


def test_flat_prior_has_a_target_if_asked():
    def flat(x):
        shape = dist.ImproperUniform(dist.constraints.positive, (), ())
        sigma = pyro.sample("sigma", shape)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, sigma), obs=x)

    x = torch.linspace(-1, 2, 7).double()
    lvm = vilvm.Pair(flat, AutoNormal(flat, init_loc_fn=init_to_origin))
    with pytest.raises(vilvm.ContractError, match="'sigma' has a flat prior"):
        LogJoint(lvm, x)
    u = torch.linspace(-1, 1, 5).double()[:, None, None]
    log_sigma = u[:, 0, 0]
    densities = dist.Normal(0.0, log_sigma.exp()[:, None]).log_prob(x)
    found = LogJoint(lvm, x, improper=True)(u).target[:, 0]
    torch.testing.assert_close(found, densities.sum(1) + log_sigma)
