"""Models moved here from other libraries: the pages' code gives the numbers of the original."""

import re
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from scipy.integrate import trapezoid

import vilvm

PAGES = Path(__file__).parents[1] / "docs" / "howto"


def blocks_of(page):
    """The Python blocks of a page, those that test_readme does not run (`py`) among them."""
    text = (PAGES / page).read_text("utf-8")
    return re.findall(r"```py(?:thon)?\n(.*?)```", text, re.DOTALL)


def run(page, number=1):
    """The names after the first blocks of a page."""
    torch.manual_seed(0)
    names = {"__name__": page.removesuffix(".md")}
    for block in blocks_of(page)[:number]:
        exec(compile(block, page, "exec"), names)
    return names


def agree(first, second):
    """Two independent means of draws, in Monte Carlo standard errors; fails 6e-7 of the time."""
    (a, a_error), (b, b_error) = first, second
    assert abs(a - b) < 5 * (a_error**2 + b_error**2) ** 0.5


def test_a_pair_of_pyro_has_the_loss_of_svi():
    names = run("from_pyro.md")
    losses = -names["losses"]
    elbo = vilvm.evaluate(names["vae"], names["x"], num_samples=100).bounds["elbo"]
    agree((losses.mean(), losses.std() / len(losses) ** 0.5), (elbo.mean, elbo.mc_se))


@pytest.mark.slow
def test_the_page_of_pyro_runs():
    run("from_pyro.md", 2)


def test_the_loss_of_a_lightning_module_is_the_elbo():
    names = run("from_lightning.md", 2)
    own = -(names["missing"].sum(-1) + names["kl"]).mean(1).detach()
    elbo = names["elbo"]
    agree((own.mean(), own.std() / len(own) ** 0.5), (elbo.mean, elbo.mc_se))


@pytest.mark.slow
def test_eight_schools_of_numpyro_has_its_exact_mean():
    names = run("from_numpyro.md")
    y, sigma = names["y"].double().numpy(), names["sigma"].double().numpy()
    # with mu and theta integrated out, by quadrature over tau
    tau = np.linspace(0, 200, 40_001)[:, None]
    precision = 1 / (sigma**2 + tau**2)
    total = 1 / 25 + precision.sum(1)
    mean = (precision * y).sum(1) / total
    log = 0.5 * np.log(precision).sum(1) - 0.5 * np.log(total)
    log += 0.5 * total * mean**2 - 0.5 * (precision * y**2).sum(1)
    weight = np.exp(log - log.max()) * stats.halfcauchy(scale=5).pdf(tau[:, 0])
    exact = trapezoid(weight * mean, tau[:, 0]) / trapezoid(weight, tau[:, 0])
    found = names["posterior"].summary()["mu"]
    agree((found.mean, found.mcse), (exact, 0.0))


def log_joint(latents, y, sigma):
    """The density of eight schools, by SciPy."""
    mu, tau, theta = (latents[name].numpy() for name in ("mu", "tau", "theta"))
    return (
        stats.norm(0, 5).logpdf(mu)
        + stats.halfcauchy(scale=5).logpdf(tau)
        + stats.norm(mu, tau).logpdf(theta).sum()
        + stats.norm(theta, sigma).logpdf(y).sum()
    )


def test_eight_schools_of_numpyro_has_its_density():
    source = blocks_of("from_numpyro.md")[0].split("posterior = ")[0]
    names = {}
    exec(compile(source, "from_numpyro.md", "exec"), names)
    y, sigma = names["y"].double(), names["sigma"].double()
    latents = {
        "mu": torch.tensor(3.0).double(),
        "tau": torch.tensor(2.0).double(),
        "theta": torch.linspace(-4, 9, 8).double(),
    }
    given = poutine.condition(names["eight_schools"], latents)
    found = poutine.trace(given).get_trace((y, sigma)).log_prob_sum()
    assert found.item() == pytest.approx(
        log_joint(latents, y.numpy(), sigma.numpy()), rel=1e-6
    )


def test_counts_have_the_density_of_scvi():
    mu, theta, zi = torch.tensor(3.0), torch.tensor(1.5), torch.tensor(-1.0)
    names = {"dist": dist, "mu": mu, "theta": theta, "zi_logits": zi}
    exec(compile(blocks_of("from_scvi.md")[1], "from_scvi.md", "exec"), names)
    found = names["likelihood"].log_prob(torch.arange(6.0))
    missed = 1 / (1 + np.exp(1.0))
    own = (1 - missed) * stats.nbinom(1.5, 1.5 / (1.5 + 3.0)).pmf(np.arange(6))
    own[0] += missed
    assert found.exp().numpy() == pytest.approx(own, rel=1e-5)
