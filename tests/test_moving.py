"""The pages for users of other libraries: the model that is moved over has the same numbers."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy.stats import nbinom, norm

import vilvm
from vilvm.wrappers import float64

PAGES = Path(__file__).parents[1] / "docs" / "howto"


def run(page: str, *numbers: int, **names):
    """Runs code blocks of a page, counted from 0, in one namespace, and returns it."""
    text = (PAGES / page).read_text("utf-8")
    blocks = re.findall(r"```py(?:thon)?\n(.*?)```", text, re.DOTALL)
    found = {"__name__": "__main__", **names}
    for number in numbers:
        exec(compile(blocks[number], f"{page}[{number}]", "exec"), found)
    return found


def deviation(ours: vilvm.Estimate, theirs) -> float:
    """The difference of an estimate from the mean of independent ones, in standard errors."""
    theirs = np.array(theirs)
    theirs_se = theirs.std(ddof=1) / len(theirs) ** 0.5
    return (ours.mean - theirs.mean()) / np.hypot(ours.mc_se, theirs_se)


# |z| < 5 fails once in 1.7 million runs


def test_elbo_of_a_pyro_model_is_that_of_its_loop():
    torch.manual_seed(0)
    found = run("from_pyro.md", 0, 1)
    vae, x = found["vae"], found["x_test"]
    assert found["draws"].shape == (100, 100, 2)
    pair = vilvm.Pair(vae.model, vae.guide)
    with torch.no_grad():
        losses = [Trace_ELBO().loss(vae.model, vae.guide, x) for _ in range(300)]
    theirs = [-loss / len(x) for loss in losses]
    for lvm in (vae, pair):
        ours = vilvm.evaluate(lvm, x, num_samples=300, progress=False).bounds["elbo"]
        assert 0 < ours.mc_se < 0.1
        assert abs(deviation(ours, theirs)) < 5
    pyro.clear_param_store()


class _LightningModule(torch.nn.Module):
    """What the page's module uses of Lightning's, which need not be installed."""

    def log(self, name, value):
        assert value.ndim == 0, name


def lightning_module(monkeypatch, data_dim: int):
    stand_in = SimpleNamespace(LightningModule=_LightningModule)
    monkeypatch.setitem(sys.modules, "lightning", stand_in)
    return run("from_lightning.md", 0)["LitVAE"](data_dim)


def test_elbo_of_a_lightning_module_is_minus_its_loss(monkeypatch):
    torch.manual_seed(0)
    lit = lightning_module(monkeypatch, 12)
    found = run("from_lightning.md", 1)
    vae, x = found["vae"], found["x"]
    lit.load_state_dict(vae.state_dict())
    with torch.no_grad():
        theirs = [-lit.training_step((x,), 0).item() for _ in range(300)]
    ours = vilvm.evaluate(vae, x, num_samples=300, progress=False).bounds["elbo"]
    assert 0 < ours.mc_se < 0.1
    assert abs(deviation(ours, theirs)) < 5


def test_loss_in_a_lightning_loop_is_that_of_the_module(monkeypatch):
    torch.manual_seed(0)
    lit = lightning_module(monkeypatch, 12)
    vae = run("from_lightning.md", 1)["VAE"](12)
    vae.load_state_dict(lit.state_dict())
    x = (torch.rand(50, 12) > 0.5).float()
    with torch.no_grad():
        theirs = np.array([lit.training_step((x,), 0).item() for _ in range(300)])
        elbo = Trace_ELBO()
        losses = [elbo.differentiable_loss(vae.model, vae.guide, x) for _ in range(300)]
    ours = torch.stack(losses).div(len(x)).numpy()
    se = np.hypot(theirs.std(ddof=1), ours.std(ddof=1)) / 300**0.5
    assert abs(ours.mean() - theirs.mean()) / se < 5


def test_mean_of_squares_is_a_gaussian_of_variance_half_the_size():
    x, mean = torch.randn(2, 7)
    gaussian = torch.distributions.Normal(mean, (7 / 2) ** 0.5)
    constant = gaussian.log_prob(mean).sum()
    loss = torch.nn.functional.mse_loss(mean, x)
    torch.testing.assert_close(constant - gaussian.log_prob(x).sum(), loss)


def pyro_log_density(model, latents, data) -> float:
    trace = pyro.poutine.trace(pyro.condition(model, latents)).get_trace(data)
    return trace.log_prob_sum().item()


def eight_schools_here():
    """The page's model, without its inference, and its data in float64."""
    text = (PAGES / "from_numpyro.md").read_text("utf-8")
    block = re.findall(r"```python\n(.*?)posterior = ", text, re.DOTALL)[0]
    found = {}
    exec(compile(block, "from_numpyro.md", "exec"), found)
    return found["model"], (found["y"].double(), found["sigma"].double())


def test_densities_of_numpyro_and_moved_model_are_equal():
    jax = pytest.importorskip("jax")
    pytest.importorskip("numpyro")
    with float64(), jax.enable_x64(True):
        there = run("from_numpyro.md", 0)
        from numpyro.infer.util import log_density

        model, data = eight_schools_here()
        arrays = tuple(part.numpy() for part in data)
        draws = np.random.default_rng(0)
        for _ in range(5):
            mu, tau, eta = draws.normal(), draws.gamma(2), draws.normal(size=8)
            values = {"mu": mu, "tau": tau, "theta": mu + tau * eta}
            tensors = {name: torch.as_tensor(value) for name, value in values.items()}
            ours = pyro_log_density(model, tensors, data)
            theirs, _ = log_density(there["centred"], arrays, {}, values)
            np.testing.assert_allclose(ours, float(theirs), rtol=1e-6)
            # dθ = τ dη for each of the eight schools
            standard = {"mu": mu, "tau": tau, "theta_decentered": eta}
            theirs, _ = log_density(there["model"], arrays, {}, standard)
            np.testing.assert_allclose(ours + 8 * np.log(tau), float(theirs), rtol=1e-6)


@pytest.mark.slow
def test_numpyro_and_infer_have_the_same_posterior():
    pytest.importorskip("numpyro")
    mcmc = run("from_numpyro.md", 0, 1)["mcmc"]
    found = run("from_numpyro.md", 2, 3, mcmc=mcmc)
    assert found["diagnosis"].findings
    assert all(f.severity.name != "CRITICAL" for f in found["diagnosis"].findings)
    from numpyro.diagnostics import summary

    theirs = summary(mcmc.get_samples(group_by_chain=True))
    ours = found["posterior"].summary()
    for name in ("mu", "tau"):
        there, here = theirs[name], ours[name]
        se = np.hypot(there["std"] / there["n_eff"] ** 0.5, here.mcse)
        assert abs(here.mean - there["mean"]) < 5 * se, name


@torch.no_grad()
def test_densities_of_the_moved_scvi_model_are_those_of_its_formulas():
    torch.manual_seed(0)
    with torch.enable_grad():
        found = run("from_scvi.md", 1)
    lvm, data, frame = found["lvm"], found["data"], found["adata"].obsm["X_nb"]
    assert list(frame.index[:2]) == ["cell 0", "cell 1"]
    rows = slice(140, 160)  # of both laboratories
    x = torch.from_numpy(found["counts"][rows])
    lab = torch.tensor([0] * 10 + [1] * 10)
    weights = vilvm.log_weights(lvm, {"x": x, "lab": lab}, 4)
    assert len(data) == 300
    z, log_library = weights.latents["z"], weights.latents["log_library"]
    covariate = torch.eye(2)[lab].expand(4, -1, -1)
    rho = lvm.decoder(torch.cat((z, covariate), -1)).softmax(-1)
    theta = lvm.log_theta.exp().numpy()
    mu = (log_library.exp().unsqueeze(-1) * rho).numpy()
    expected = nbinom.logpmf(x.numpy(), theta, theta / (theta + mu)).sum(-1)
    np.testing.assert_allclose(weights.log_likelihood, expected, rtol=1e-4)
    mean, sd = lvm.library_mean[lab].numpy(), lvm.library_sd[lab].numpy()
    expected = norm.logpdf(z).sum(-1) + norm.logpdf(log_library, mean, sd)
    np.testing.assert_allclose(weights.log_prior, expected, rtol=1e-4)
