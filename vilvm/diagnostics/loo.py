"""PSIS leave-one-out prediction: how well the posterior given the others predicts each datum.

Where data share latents z, the expected log predictive density of datum i given all others is

    elpd_i = log p(x_i | x_{−i}) = log ( Σ_s r_s p(x_i | z_s) / Σ_s r_s ),    r_s ∝ w_s / p(x_i | z_s),   w_s = p(x, z_s) / q(z_s | x),

for draws z_s of the guide: their weight w makes draws of the posterior of them, and the division takes datum i out again; the r are Pareto-smoothed, and k̂_i says
whether that can be done with so many draws. What is summed is elpd = Σ_i elpd_i; the effective number of parameters is p = Σ_i log p(x_i | x) − elpd.

Where every latent belongs to one datum, leaving a datum out leaves nothing to know it by: given the model's parameters p(x_i | x_{−i}) = p(x_i), which is what
``evaluate`` estimates, on data that were not trained on.

References: Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC, Vehtari, Gelman and Gabry, 2017; Bayesian Leave-One-Out
Cross-Validation for Large Data, Magnusson, Andersen, Jonasson and Vehtari, 2019 (draws of an approximate posterior).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilvm.data import seeded
from vilvm.diagnostics.finding import Finding, Gravity
from vilvm.diagnostics.psis import JOINT_ROWS, check_weighable, good_k, psis
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, fixed_beside
from vilvm.weights import Layout, layout, weight_chunks
from vilvm.weights.contract import check_number

__all__ = ["LOO", "loo"]


@dataclass(frozen=True)
class LOO:
    """Leave-one-out prediction, in nats.

    Arguments:
        elpd: expected log predictive density, all data together.
        se: its standard error over the data.
        p: effective number of parameters.
        elpd_i: of each datum, shape (num_data,).
        k: Pareto k̂ of each datum's weights, shape (num_data,).
        joint_k: Pareto k̂ of the guide's own weights, no datum left out.
        num_samples: S.
    """

    elpd: float
    se: float
    p: float
    elpd_i: Tensor
    k: Tensor
    joint_k: float
    num_samples: int

    @property
    def threshold(self) -> float:
        """The k̂ up to which so many draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
        return good_k(self.num_samples)

    @property
    def finding(self) -> Finding:
        """The verdict: GRAVE if the guide is too far from the posterior; WARNING if a datum moves it so much that it cannot be left out by weights."""
        name, source = "Leave-one-out prediction", "min(1 − 1/log10 S, 0.7): Vehtari et al., 2017 and 2024"
        if self.joint_k > self.threshold:
            verdict = f"k̂ of the guide's own weights is {self.joint_k:.2f}, so draws of it cannot stand for the posterior, with or without a datum."
            return Finding(name, Gravity.GRAVE, verdict, source, "Take a richer guide first.")
        bad = (self.k > self.threshold).nonzero()[:, 0].tolist()
        told = f"elpd is {self.elpd:.1f} ± {self.se:.1f} nats over {len(self.k)} data, with {self.p:.1f} effective parameters"
        if not bad:
            return Finding(name, Gravity.FINE, f"{told}; no datum's k̂ is above {self.threshold:.2f}.", source, about="model")
        worst = sorted(bad, key=lambda i: -self.k[i].item())[:5]
        return Finding(
            name,
            Gravity.WARNING,
            f"{told}, but k̂ is above {self.threshold:.2f} for {len(bad)} data ({', '.join(map(str, worst))} the worst): each moves the posterior so "
            "much that it cannot be left out by weights.",
            source,
            "Look at these data, take a likelihood with heavier tails, or fit anew without each of them.",
            "model",
        )


@torch.no_grad()
def loo(lvm: LatentVariableModel, data: Any, *, num_samples: int = 10_000, seed: int = 0) -> LOO:
    """PSIS leave-one-out prediction of a model whose data share latents, smoothed by ArviZ.

    Arguments:
        lvm: the model and guide, its data in a plate.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row.
        num_samples: draws of the guide, at least 100.
        seed: of the draws, and of the data's transform.

    Raises:
        ContractError: every latent belongs to one datum; the model has no plate over its data; or the guide is degenerate, a prior flat.

    Example:
        >>> import torch
        >>> from models.eight_schools import EightSchools, eight_schools
        >>> from vilvm.diagnostics import loo
        >>> loo(EightSchools(guide="mean_field"), eight_schools(), num_samples=500).elpd_i.shape
        torch.Size([8])
    """
    check_number("loo: num_samples", num_samples, 100)
    fixed = fixed_beside(lvm, data, seed)
    with seeded(seed, fixed.device), evaluation_mode(lvm):
        plan = layout(lvm, fixed.x)
        _check(lvm, plan)
        likelihoods, log_w = [], []
        for weights in weight_chunks(lvm, fixed.x, num_samples, max(1, JOINT_ROWS // max(plan.num_data, 1)), plan=plan):
            by_datum = [term.double() for term in weights.log_likelihoods.values() if term.dim() == 2]
            likelihoods.append(torch.stack(by_datum).sum(0).cpu())
            log_w.append(weights.log_weight.cpu())
    log_p, joint = torch.cat(likelihoods), torch.cat(log_w)
    whole, without = psis(joint), psis(joint[:, None] - log_p)
    elpd = (without.log_weights + log_p).logsumexp(0)
    fitted = (whole.log_weights[:, None] + log_p).logsumexp(0)  # log p(x_i | x)
    return LOO(
        elpd=elpd.sum().item(),
        se=(elpd.std() * math.sqrt(len(elpd))).item() if len(elpd) > 1 else math.nan,
        p=(fitted - elpd).sum().item(),
        elpd_i=elpd,
        k=without.k,
        joint_k=whole.k.item(),
        num_samples=num_samples,
    )


def _check(lvm: object, plan: Layout) -> None:
    check_weighable("loo", lvm, plan)
    name = type(lvm).__name__
    if plan.local:
        raise ContractError(
            f"loo: every latent of {name} belongs to one datum, so that p(x_i | the others) is p(x_i): see evaluate, on data that were not trained on."
        )
    if plan.data_plate is None:
        raise ContractError(f"loo: {name} has no plate over its data, so none can be left out.")
    if plan.subsample:
        raise ContractError(
            f"loo: {name} subsamples its plate {next(iter(plan.subsample))!r} at random; take a model that sees all of it."
        )
