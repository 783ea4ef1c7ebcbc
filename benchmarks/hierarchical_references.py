"""Reference moments of the hierarchical posteriors, by long runs of NumPyro's NUTS.

    uv run --group bench python -m benchmarks.hierarchical_references [NAME ...] [--draws 5000]

writes ``models/hierarchical/NAME.json``. Each run has four chains in float64. Normal effects are
sampled non-centred where ``NONCENTRED`` names them, and reported as they are: the posterior is the
same. The funnel is its own prior, so that its moments have a closed form.

The run fails, and writes nothing, if R̂ of a scalar is 1.01 or more.

Reference: The No-U-Turn Sampler, Hoffman and Gelman, 2014.
"""

import argparse
import datetime
import importlib.metadata
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro
import torch
from arviz_stats.base import array_stats
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam
from scipy import stats

from benchmarks.numpyro_models.hierarchical import MODELS
from vilvm._runtime.files import write_atomic
from vilvm.models.hierarchical import Scalar, names, posterior

__all__ = ["main"]

FOLDER = Path(__file__).parents[1] / "models" / "hierarchical"
CHAINS, WARMUP, SEED = 4, 2000, 17
NONCENTRED = {  # else the sites are sampled as the model has them
    "eight_schools_centred": ("theta",),
    "irt_2pl": ("b",),
    "poisson_glmm": (),
    "radon": ("a", "b"),
    "seeds": ("b",),
}
TARGET_ACCEPT = {"horseshoe_logistic": 0.99}  # else 0.95


def run_nuts(name: str, draws: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The draws of all sites, shape (chains, draws, *event), and how they were made."""
    model, arguments = MODELS[name]
    noncentred = NONCENTRED.get(name, ())
    config: dict[str, Any] = {site: LocScaleReparam(0) for site in noncentred}
    target = TARGET_ACCEPT.get(name, 0.95)
    kernel = NUTS(
        numpyro.handlers.reparam(model, config=config),
        target_accept_prob=target,
        max_tree_depth=12,
    )
    mcmc = MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=draws,
        num_chains=CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    begin = time.process_time()
    mcmc.run(jax.random.PRNGKey(SEED), **arguments, extra_fields=("diverging",))
    found = {k: np.asarray(v) for k, v in mcmc.get_samples(True).items()}
    settings = {
        "method": "NUTS",
        "chains": CHAINS,
        "warmup": WARMUP,
        "draws": draws,
        "target_accept": target,
        "max_tree_depth": 12,
        "noncentred": list(noncentred),
        "seed": SEED,
        "dtype": "float64",
        "divergences": int(mcmc.get_extra_fields(True)["diverging"].sum()),
        "cpu_seconds": round(time.process_time() - begin, 1),
        "numpyro": importlib.metadata.version("numpyro"),
        "jax": importlib.metadata.version("jax"),
        "arviz_stats": importlib.metadata.version("arviz-stats"),
    }
    return found, settings


def summarise(draws: np.ndarray) -> Scalar:
    """The statistics of a scalar, from draws of shape (chains, draws)."""
    statistics: Any = array_stats  # whose type is a union
    axes: dict[str, Any] = {"chain_axis": 0, "draw_axis": 1}
    return Scalar(
        mean=float(draws.mean()),
        sd=float(draws.std(ddof=1)),
        q5=float(np.quantile(draws, 0.05)),
        q95=float(np.quantile(draws, 0.95)),
        r_hat=float(statistics.rhat(draws, **axes)),
        ess_bulk=float(statistics.ess(draws, method="bulk", **axes)),
        ess_tail=float(statistics.ess(draws, method="tail", prob=(0.05, 0.95), **axes)),
    )


def sampled(name: str, draws: int) -> tuple[dict[str, Scalar], dict[str, Any]]:
    """The statistics of all scalars of a posterior by NUTS, and how they were found."""
    found, settings = run_nuts(name, draws)
    tensors = {site: torch.tensor(value) for site, value in found.items()}
    scalars = posterior(name).scalars(tensors, sample_dims=2)
    return {key: summarise(value.numpy()) for key, value in scalars.items()}, settings


def exact_funnel() -> tuple[dict[str, Scalar], dict[str, Any]]:
    """The posterior of v is its prior, N(0, 3)."""
    prior = stats.norm(0, 3)
    v = Scalar(0.0, 3.0, prior.ppf(0.05), prior.ppf(0.95), None, None, None)
    return {"v": v}, {"method": "closed form"}


def worst(scalars: Mapping[str, Scalar]) -> dict[str, float]:
    """The largest R̂ and the least effective sample sizes, over the scalars that have them."""
    rows = scalars.values()
    return {
        "largest_r_hat": max(row.r_hat or 1.0 for row in rows),
        "least_ess_bulk": min(row.ess_bulk or np.inf for row in rows),
        "least_ess_tail": min(row.ess_tail or np.inf for row in rows),
    }


def as_json(name: str, method: dict[str, Any], scalars: Mapping[str, Scalar]) -> str:
    """The file, with one scalar a line."""
    head = json.dumps({"name": name, "method": method}, indent=2)[:-2]
    rows = [
        f"    {json.dumps(key)}: {json.dumps([_rounded(x) for x in row])}"
        for key, row in scalars.items()
    ]
    fields = json.dumps(Scalar._fields)
    lines = ",\n".join(rows)
    return f'{head},\n  "fields": {fields},\n  "scalars": {{\n{lines}\n  }}\n}}\n'


def _rounded(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.6g}")


def make(name: str, draws: int) -> None:
    """Finds and writes the reference of one posterior."""
    scalars, method = exact_funnel() if name == "funnel" else sampled(name, draws)
    quality = worst(scalars)
    print(name, method, quality, flush=True)
    if quality["largest_r_hat"] >= 1.01:
        raise RuntimeError(f"{name}: R̂ {quality['largest_r_hat']:.3f}; draw more.")
    method["date"] = str(datetime.date.today())
    write_atomic(FOLDER / f"{name}.json", as_json(name, method, scalars))


def main() -> None:
    """Reads the command line, and makes the references."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hierarchical_references",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("names", nargs="*", default=names())
    parser.add_argument("--draws", type=int, default=5000, help="per chain")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for name in arguments.names:
        make(name, arguments.draws)


if __name__ == "__main__":
    main()
