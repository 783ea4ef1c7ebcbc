"""Imputation: missing values replaced by their posterior means,

    E[x_M | x_O] = E[ E[x_M | z] | x_O ],

with z drawn from p(z | x_O) by sampling-importance-resampling, and E[x_M | z] the mean of the
likelihood. This is exact as the number of proposals grows, whatever the guide.

Reference: MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets, Mattei and
Frellsen, 2019.
"""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.data.missing import Masked
from vilvm.lvm import ContractError, fixed_beside
from vilvm.weights import resample
from vilvm.weights.prediction import observed, replicate

__all__ = ["impute"]

_ROWS = 100  # data at once


def impute(
    lvm: Any,
    data: Any,
    *,
    site: str = "x",
    num_samples: int = 200,
    proposals: int = 1000,
    as_frame: bool = False,
    seed: int = 0,
) -> Any:
    """Replaces missing values by their posterior means, E[x_M | x_O].

    Arguments:
        lvm: a trained model of data with missing values, such as ``partly_observed(vae)``.
        data: of ``vilvm.data.with_missing``.
        site: the name of the observed site with missing values.
        num_samples: posterior draws for each datum.
        proposals: draws from the guide, from which these are picked by their weights.
        as_frame: whether to return a pandas DataFrame, which has the row labels and the names of
            the columns of the data.
        seed: of the draws.

    Returns:
        The site's values, shape (num_data, ...): the observed ones as they are, the others
        imputed.

    Raises:
        ValueError: the data have no mask, or an option is out of range.
        ContractError: there is no such site; or see ``vilvm.resample``.

    Examples:
        >>> import pandas
        >>> from vilvm.data import with_missing
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.wrappers import impute, partly_observed
        >>> frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [None, 1.0], "c": [0.5, 0.0]})
        >>> full = impute(partly_observed(PPCA(3, 1)), with_missing(frame), as_frame=True)
        >>> list(full.columns), bool(full.notna().all(axis=None)), full.c[0]
        (['a', 'b', 'c'], True, np.float32(0.5))
    """
    seed = check_seed("impute: seed", seed)
    num_samples = check_number("impute: num_samples", num_samples)
    proposals = check_number("impute: proposals", proposals)
    fixed = fixed_beside(lvm, data, seed)
    if not isinstance(fixed.x, Masked):
        raise ValueError(
            "impute: these data have no mask; make them with vilvm.data.with_missing(...)."
        )
    with seeded(seed, fixed.device):
        parts = [
            _imputed(lvm, part.x, site, num_samples, proposals)
            for part in fixed.chunks(_ROWS)
        ]
    values = torch.cat(parts)
    if not as_frame:
        return values
    rows = values.cpu().reshape(len(values), -1).numpy()
    names = pd.Index(fixed.columns) if isinstance(fixed.columns, tuple) else None
    return pd.DataFrame(rows, index=fixed.index, columns=names)


def _imputed(
    lvm: Any, batch: Masked, site: str, num_samples: int, proposals: int
) -> Tensor:
    draws = resample(lvm, batch, num_samples, proposals=proposals)
    means = replicate(lvm, draws, like=batch, mean=True)
    if site not in means:
        raise ContractError(
            f"impute: {type(lvm).__name__} observes {sorted(means)}, and no site {site!r}; name "
            "it with site=...."
        )
    mean, x = means[site].mean(0), observed(lvm, batch)[site]
    if batch.observed.shape != x.shape:
        raise ContractError(
            f"impute: the mask has shape {tuple(batch.observed.shape)}, and site {site!r} "
            f"{tuple(x.shape)}; impute by vilvm.resample and vilvm.predict."
        )
    return torch.where(batch.observed, x, mean)
