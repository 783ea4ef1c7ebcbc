"""Disentanglement: whether each known factor of the data has a latent dimension of its own.

For factors v_k of the data, such as shape, size and position, and latent dimensions z_j, let
I(z_j; v_k) be their mutual information and H(v_k) the entropy of the factor. A factor that one
dimension encodes, and no other, has a large gap between the two most informative dimensions,

    gap_k = (I(z_(1); v_k) − I(z_(2); v_k)) / H(v_k),    MIG = mean of gap_k over the factors,

from 0 to 1, the mutual information gap. A rotation of the latents changes no bound on log p(x),
but it changes MIG: that of a model without a reason to align its dimensions is small.

I(z_j; v_k) is estimated from pairs: z_j is divided into B bins of equal counts, the factor has K
values, and

    I = Σ p(b, v) log [p(b, v) / (p(b) p(v))] − (B − 1)(K − 1) / (2N),

the last term being the mean of the first for N independent pairs (Miller, 1955). The codes are
draws of q(z | x), as in the paper; with posterior means the noise of the code is not counted.

References: Isolating Sources of Disentanglement in Variational Autoencoders, Chen, Li, Grosse and
Duvenaud, 2018; Note on the Bias of Information Estimates, George A. Miller, 1955.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_tensor

__all__ = ["InformationGap", "mig"]


class InformationGap(NamedTuple):
    """The mutual information gap.

    Arguments:
        gaps: by factor, from 0 to 1.
        information: by factor, its mutual information with each latent dimension in nats, shape
            (latent_dim,).
        entropies: by factor, its entropy in nats.

    Examples:
        >>> from vilvm.evaluation import InformationGap
        >>> InformationGap({"size": 0.25, "shape": 0.75}, {}, {}).score
        0.5
    """

    gaps: dict[str, float]
    information: dict[str, Tensor]
    entropies: dict[str, float]

    @property
    def score(self) -> float:
        """MIG: the mean gap."""
        return sum(self.gaps.values()) / len(self.gaps)


def mig(
    codes: Tensor, factors: Mapping[str, Tensor], num_bins: int = 20
) -> InformationGap:
    """The mutual information gap of codes and the factors that the data are known to have.

    Arguments:
        codes: one draw of the latent for each datum, as ``vilvm.posterior(lvm, x)["z"][0]``; shape
            (num_data, latent_dim), latent_dim at least 2.
        factors: by name, whole numbers from 0, shape (num_data,) each.
        num_bins: bins of equal counts into which each latent dimension is divided.

    Returns:
        InformationGap; its `score` is MIG.

    Raises:
        ValueError: shapes differ, a factor is constant, or there are fewer data than bins.

    Reference: Isolating Sources of Disentanglement in Variational Autoencoders, Chen, Li, Grosse
    and Duvenaud, 2018.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import mig
        >>> size, shape = torch.arange(1200) % 4, torch.arange(1200) % 3
        >>> codes = torch.stack([size, shape], 1) + 0.1 * torch.rand(1200, 2)
        >>> round(mig(codes, {"size": size, "shape": shape}, num_bins=12).score, 1)
        1.0
    """
    num_bins = check_number("mig: num_bins", num_bins, 2)
    _check(codes, factors, num_bins)
    bins = _bins(codes, num_bins)
    gaps, information, entropies = {}, {}, {}
    for name, factor in factors.items():
        values = factor.unique(return_inverse=True)[1]
        found = torch.stack([_information(b, values, num_bins) for b in bins.T])
        first, second = found.clamp(min=0).topk(2).values.tolist()
        entropies[name] = _entropy(values.bincount()).item()
        gaps[name] = min(1.0, (first - second) / entropies[name])
        information[name] = found
    return InformationGap(gaps, information, entropies)


def _check(codes: Tensor, factors: Mapping[str, Tensor], num_bins: int) -> None:
    check_tensor("mig: codes", codes)
    if codes.dim() != 2 or codes.shape[1] < 2:
        raise ValueError(
            "mig: codes must have shape (num_data, latent_dim), with two dimensions at least; got "
            f"{tuple(codes.shape)}."
        )
    if len(codes) < num_bins:
        raise ValueError(f"mig: {len(codes)} data are too few for {num_bins} bins.")
    if not factors:
        raise ValueError("mig: give at least one factor.")
    for name, factor in factors.items():
        if factor.shape != codes.shape[:1] or len(factor.unique()) < 2:
            raise ValueError(
                f"mig: factor {name!r} must have two values at least, one for each of "
                f"{len(codes)} codes."
            )


def _bins(codes: Tensor, num_bins: int) -> Tensor:
    """The number of the bin of every code, by its rank in its dimension."""
    ranks = codes.argsort(dim=0, stable=True).argsort(dim=0)
    return ranks * num_bins // len(codes)


def _information(bins: Tensor, values: Tensor, num_bins: int) -> Tensor:
    """I(bin; value) in nats, less its mean for independent pairs."""
    num_values = int(values.max()) + 1
    joint = (bins * num_values + values).bincount(minlength=num_bins * num_values)
    joint = joint.reshape(num_bins, num_values)
    plain = _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint.flatten())
    return plain - (num_bins - 1) * (num_values - 1) / (2 * len(bins))


def _entropy(counts: Tensor) -> Tensor:
    """The entropy of relative frequencies in nats, float64."""
    p = counts.double() / counts.sum()
    return -torch.xlogy(p, p).sum()
