"""By how much importance weights would correct the guide's means and standard deviations.

With draws z₁ … z_S of the guide and their Pareto-smoothed weights w₁ … w_S, which sum to one, of every component of a latent

    mean:  m̂ = Σ wₛ zₛ,    sd:  ŝ² = Σ wₛ (zₛ − m̂)²

are those of the posterior as far as the weights can tell, which is as far as k̂ is small. What the guide says is off by

    shift = (m̂ − mean z) / ŝ,    ratio = sd z / ŝ,

in the posterior's own units: what a reader of a table of results would want to know of it. A guide can have a small k̂ and be off, for the weights that
correct it are not in its own draws.

References: Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and Gelman, 2018; Validated Variational Inference via Practical
Posterior Error Bounds, Huggins, Kasprzak, Campbell and Broderick, 2020 (errors of means and standard deviations as what matters).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilvm.data import seeded
from vilvm.diagnostics.finding import Finding, Gravity
from vilvm.diagnostics.psis import JOINT_ROWS, check_weighable, good_k, psis
from vilvm.diagnostics.simulated import components, names_of
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, fixed_beside
from vilvm.weights import Layout, layout, weight_chunks
from vilvm.weights.contract import check_number
from vilvm.weights.replayed import replay

__all__ = ["Correction", "correction"]

SOURCE = "tolerances of 0.1 posterior standard deviations and of 10 %, ours, after Huggins et al., 2020"


@dataclass(frozen=True)
class Correction:
    """The guide's means and standard deviations beside those that its weights make of them.

    Arguments:
        names: of the K components of the latents and of what ``pyro.deterministic`` makes of them, such as "theta[3]".
        mean, sd: of the guide's draws, shape (K,).
        corrected_mean, corrected_sd: of the weighted draws, shape (K,).
        shift_se, ratio_se: Monte Carlo standard errors of ``shift`` and ``ratio``, shape (K,).
        k: Pareto k̂ of the weights.
        num_samples: S.
        largest_shift, largest_ratio: beyond which a component is said to be off.
    """

    names: tuple[str, ...]
    mean: Tensor
    sd: Tensor
    corrected_mean: Tensor
    corrected_sd: Tensor
    shift_se: Tensor
    ratio_se: Tensor
    k: float
    num_samples: int
    largest_shift: float = 0.1
    largest_ratio: float = 0.1

    @property
    def shift(self) -> Tensor:
        """(m̂ − mean) / ŝ, shape (K,): what must be added to the guide's mean, in posterior standard deviations."""
        return (self.corrected_mean - self.mean) / self.corrected_sd

    @property
    def ratio(self) -> Tensor:
        """The guide's standard deviation over the corrected one, shape (K,)."""
        return self.sd / self.corrected_sd

    @property
    def off(self) -> list[str]:
        """The components whose mean or standard deviation is off, the worst first."""
        badness = torch.maximum(self.shift.abs() / self.largest_shift, (self.ratio - 1).abs() / self.largest_ratio)
        return [self.names[i] for i in badness.argsort(descending=True).tolist() if badness[i] > 1]

    @property
    def reliable(self) -> bool:
        """Whether k̂ is small enough for so many draws that the correction can be believed."""
        return self.k <= good_k(self.num_samples)

    @property
    def finding(self) -> Finding:
        """The verdict: WARNING if a component is off, or the weights are too uneven to tell."""
        name = "Means and standard deviations"
        if not self.reliable:
            verdict = f"The weights are too uneven (k̂ = {self.k:.2f}) to tell by how much the guide's means and standard deviations are off."
            return Finding(name, Gravity.WARNING, verdict, SOURCE, "Take a richer guide, or another parametrisation of the model.")
        if not self.off:
            i, j = int(self.shift.abs().argmax()), int((self.ratio - 1).abs().argmax())
            verdict = (
                f"Importance weights would move no mean by more than {self.shift[i].abs().item():.2f} of its standard deviation ({self.names[i]}), and "
                f"the standard deviations are {self.ratio.min().item():.2f} to {self.ratio.max().item():.2f} times theirs ({self.names[j]})."
            )
            return Finding(name, Gravity.FINE, verdict, SOURCE)
        told = "; ".join(self._told(self.names.index(n)) for n in self.off[:3])
        return Finding(
            name,
            Gravity.WARNING,
            f"{len(self.off)} of {len(self.names)} components are off: {told}.",
            SOURCE,
            "Report weighted draws in place of the guide's own (vilvm.resample), or take a richer guide.",
        )

    def _told(self, i: int) -> str:
        return (
            f"{self.names[i]}: mean to be moved by {self.shift[i].item():+.2f} ± {self.shift_se[i].item():.2f} standard deviations, the guide's standard "
            f"deviation is {self.ratio[i].item():.2f} ± {self.ratio_se[i].item():.2f} times the corrected one"
        )


@torch.no_grad()
def correction(lvm: LatentVariableModel, data: Any, *, num_samples: int = 50_000, seed: int = 0) -> Correction:
    """Means and standard deviations of the guide, and what its importance weights make of them.

    For latents that the data share, whose weight is one; of a model whose latents all belong to single data, see ``pareto_k`` and ``gaps``.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row.
        num_samples: draws, at least 1000.
        seed: of the draws, and of the data's transform.

    Returns:
        Correction, of every component of every shared latent and deterministic value; of those in the data's plate, of the first ten data.

    Raises:
        ContractError: no latent is shared by the data; or the guide is degenerate, a prior flat.

    Example:
        >>> import torch, vilvm
        >>> from models.eight_schools import EightSchools, eight_schools
        >>> from vilvm.diagnostics import correction
        >>> correction(EightSchools(guide="mean_field"), eight_schools(), num_samples=1000).names[:2]
        ('mu', 'tau')
    """
    check_number("correction: num_samples", num_samples, 1000)
    fixed = fixed_beside(lvm, data, seed)
    with seeded(seed, fixed.device), evaluation_mode(lvm):
        plan = layout(lvm, fixed.x)
        check_weighable("correction", lvm, plan)
        if plan.local:
            raise ContractError(
                f"correction: no latent of {type(lvm).__name__} is shared by its data; of each datum's own see pareto_k, gaps and sbc."
            )
        chunk = max(1, JOINT_ROWS // max(plan.num_data, 1))
        parts, names = [], ()
        for weights in weight_chunks(lvm, fixed.x, num_samples, chunk, plan=plan):
            values, whole = _with_deterministic(lvm, fixed.x, weights.latents, plan)
            parts.append((weights.log_weight.cpu(), components(values, whole)[:, 0].cpu()))
            names = names_of(values, whole)
    log_w, z = (torch.cat(column) for column in zip(*parts, strict=True))
    moving = z.std(0) > 1e-6 * z.abs().amax(0)  # a deterministic value may be a constant, of which rounding would be judged
    z, names = z[:, moving], tuple(n for n, moves in zip(names, moving.tolist(), strict=True) if moves)
    smoothed = psis(log_w)
    w = smoothed.log_weights.exp().unsqueeze(-1)
    mean, sd = z.mean(0), z.std(0, correction=0)
    m = (w * z).sum(0)
    s = (w * (z - m).square()).sum(0).sqrt()
    # What one draw adds to shift and to log ratio, of which it moves both sides.
    on_shift = w * (z - m) / s - (z - mean) / s / num_samples
    on_ratio = ((z - mean).square() / sd.square() - 1) / 2 / num_samples - w * ((z - m).square() / s.square() - 1) / 2
    return Correction(
        names=names,
        mean=mean,
        sd=sd,
        corrected_mean=m,
        corrected_sd=s,
        shift_se=on_shift.square().sum(0).sqrt(),
        ratio_se=on_ratio.square().sum(0).sqrt() * sd / s,
        k=smoothed.k.item(),
        num_samples=num_samples,
    )


def _with_deterministic(
    lvm: LatentVariableModel, batch: Any, latents: dict[str, Tensor], plan: Layout
) -> tuple[dict[str, Tensor], Layout]:
    """The latents and what ``pyro.deterministic`` makes of them, which is often what a reader wants to know; and where their data stand."""
    made = replay(lvm, batch, latents, plan=plan)
    return {**latents, **made.deterministics}, plan._replace(data_axes=made.data_axes)
