"""Prescribed models by name, each with data and the settings of its fit.

The data are from posteriordb if it is installed, else embedded or simulated.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

import vilvm
from vilvm._runtime.random import seeded
from vilvm.data import Data
from vilvm.data.datasets import posteriordb
from vilvm.data.datasets.posteriordb import ReferencePosterior
from vilvm.models.bayesian_regression import FLAT, BayesianRegression, lagged
from vilvm.models.eight_schools import EightSchools, eight_schools
from vilvm.models.factor_analysis import FactorAnalysis
from vilvm.models.gaussian_mixture import GaussianMixture
from vilvm.models.hidden_markov import HiddenMarkov
from vilvm.models.ppca import PPCA
from vilvm.training import one_cycle

__all__ = ["MODELS", "SCHOOLS", "Case", "fit_case"]

# Alderman and Powers, 1979, by way of Rubin, 1981
SCHOOLS = (
    "Choate",
    "Deerfield",
    "Phillips Andover",
    "Phillips Exeter",
    "Hotchkiss",
    "Lawrenceville",
    "St. Paul's",
    "Mt. Hermon",
)


class Case(NamedTuple):
    """A model, its data, and how to fit it.

    Arguments:
        lvm: the model and guide, not fitted.
        data: to fit it to.
        steps: of Adam with a one-cycle learning rate; 0 for a model that is fitted already.
        lr: the peak of the learning rate.
        particles: draws a step.
        scalars: gives the components of the latents the names of the reference draws.
        reference: draws of posteriordb, or None.
        coords: names of the data, as the exports and the diagnosis take them.
    """

    lvm: Any
    data: Data
    steps: int
    lr: float
    particles: int = 16
    scalars: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    reference: ReferencePosterior | None = None
    coords: Mapping[str, Sequence[str]] | None = None


def fit_case(case: Case, seed: int, steps: int | None = None) -> vilvm.Fit | None:
    """Fits the guide of a case, with all data at each step."""
    steps = steps or case.steps
    if not case.steps:
        return None
    objective = Trace_ELBO(
        num_particles=case.particles, vectorize_particles=True, max_plate_nesting=1
    )
    return vilvm.fit(
        case.lvm,
        case.data,
        steps=steps,
        objective=objective,
        **one_cycle(case.lr, steps),
        seed=seed,
    )


def _reference(name: str) -> ReferencePosterior | None:
    try:
        return posteriordb(name)
    except FileNotFoundError:
        return None


def _eight_schools(guide: str | None, centred: bool = False) -> Case:
    lvm = EightSchools(centred=centred, guide=guide or "flow")
    reference = _reference("eight_schools-eight_schools_noncentered")
    steps, lr, particles = (
        (4000, 0.01, 32) if guide in (None, "flow") else (2000, 0.05, 16)
    )
    fit = (steps, lr, particles)
    coords = {"data": SCHOOLS}
    return Case(lvm, eight_schools(), *fit, lvm.scalars, reference, coords)


def _linear_regression(
    data: tuple[Tensor, Tensor], whitened: bool, options: dict[str, Any]
) -> BayesianRegression:
    if whitened:
        return BayesianRegression.whitened(data, **options)
    return BayesianRegression(data[0].shape[1], **options)


def _kidiq(guide: str | None, whitened: bool = True) -> Case:
    reference = _reference("kidiq-kidscore_momiq")
    if reference is None:
        with seeded(0):
            x = 100 + 15 * torch.randn(434, 1)
            y = 26 + 0.6 * x[:, 0] + 18 * torch.randn(434)
    else:
        x = torch.as_tensor(reference.data["mom_iq"])[:, None]
        y = torch.as_tensor(reference.data["kid_score"])
    options: dict[str, Any] = {"beta_scale": FLAT, "guide": guide or "full_rank"}
    lvm = _linear_regression((x, y), whitened, options)
    names = {"alpha": "beta[1]", "beta[1]": "beta[2]", "sigma": "sigma"}

    def scalars(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {names[n]: v for n, v in lvm.scalars(latents).items()}

    return Case(lvm, Data((x, y), name="kidiq"), 1000, 0.05, 8, scalars, reference)


def _regression(guide: str | None, whitened: bool = True) -> Case:
    reference = _reference("sblri-blr")
    if reference is None:
        with seeded(0):
            x = torch.randn(100, 5)
            y = x @ torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0]) + 0.5 * torch.randn(100)
    else:
        x, y = (
            torch.as_tensor(reference.data["X"]),
            torch.as_tensor(reference.data["y"]),
        )
    options: dict[str, Any] = {
        "intercept": False,
        "sigma_scale": 10.0,
        "sigma_prior": "half_normal",
        "guide": guide or "full_rank",
    }
    lvm = _linear_regression((x, y), whitened, options)
    return Case(lvm, Data((x, y), name="sblri"), 1000, 0.05, 8, lvm.scalars, reference)


def _autoregression(guide: str | None, whitened: bool = True) -> Case:
    reference = _reference("arK-arK")
    if reference is None:
        with seeded(0):
            series = [torch.zeros(())] * 5
            for _ in range(200):
                series.append(
                    0.5 * series[-1] - 0.3 * series[-2] + 0.2 * torch.randn(())
                )
            data = lagged(torch.stack(series), 5)
    else:
        data = lagged(torch.as_tensor(reference.data["y"]), int(reference.data["K"]))
    options: dict[str, Any] = {"guide": guide or "full_rank"}
    lvm = _linear_regression(data.x, whitened, options)
    return Case(lvm, data, 1000, 0.05, 8, lvm.scalars, reference)


def _autoguide(guide: str | None) -> dict[str, Any]:
    known = {
        None: {},
        "full_rank": {"autoguide": AutoMultivariateNormal},
        "mean_field": {"autoguide": AutoNormal},
    }
    if guide not in known:
        raise ValueError(
            f"This model has the guides full_rank and mean_field, and no {guide!r}."
        )
    return known[guide]


def _mixture(guide: str | None) -> Case:
    reference = _reference("low_dim_gauss_mix-low_dim_gauss_mix")
    lvm = GaussianMixture(2, marginal=True, **_autoguide(guide))
    if reference is None:
        with seeded(0):
            x = torch.cat([torch.randn(400) * 1.0 - 2.7, torch.randn(600) * 1.0 + 2.9])
    else:
        x = reference.data["y"]

    def scalars(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ordered = {
            f"{n}[{k + 1}]": latents[n][:, k] for n in ("mu", "sigma") for k in range(2)
        }
        return {"theta": latents["pi"][:, 0], **ordered}

    return Case(
        lvm, Data(x, name="low_dim_gauss_mix"), 1500, 0.03, 16, scalars, reference
    )


def _markov(guide: str | None) -> Case:
    reference = _reference("hmm_example-hmm_example")
    lvm = HiddenMarkov(
        2, loc=[3.0, 10.0], scale=1.0, marginal=True, **_autoguide(guide)
    )
    if reference is None:
        with seeded(0):
            state = (torch.arange(100) // 12) % 2
            y = torch.where(state == 1, 9.0, 3.0) + torch.randn(100)
    else:
        y = reference.data["y"]

    def scalars(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        means = {f"mu[{k + 1}]": latents["mu"][:, k] for k in range(2)}
        return means | {
            f"theta{k + 1}[{j + 1}]": latents["transition"][:, k, j]
            for k in range(2)
            for j in range(2)
        }

    return Case(
        lvm,
        Data(torch.as_tensor(y)[None], name="hmm_example"),
        3000,
        0.05,
        16,
        scalars,
        reference,
    )


def _linear(kind: type, guide: str | None) -> Case:
    with seeded(0):
        x = torch.randn(500, 3) @ torch.randn(3, 8) + 0.5 * torch.randn(500, 8)
        lvm = kind(8, 3) if kind is PPCA else kind(8, 3, diagonal=guide == "mean_field")
    return Case(lvm.maximise(x), Data(x, name="simulated"), 0, 0.0)


MODELS: dict[str, Callable[[str | None], Case]] = {
    "eight_schools": _eight_schools,
    "eight_schools_centred": partial(_eight_schools, centred=True),
    "gaussian_mixture": _mixture,
    "hidden_markov": _markov,
    "kidiq": _kidiq,
    "kidiq_raw": partial(_kidiq, whitened=False),
    "bayesian_regression": _regression,
    "bayesian_regression_raw": partial(_regression, whitened=False),
    "autoregression": _autoregression,
    "autoregression_raw": partial(_autoregression, whitened=False),
    "ppca": partial(_linear, PPCA),
    "factor_analysis": partial(_linear, FactorAnalysis),
}
