"""Linear discriminant analysis as a generative model: Gaussian classes that share one covariance.

Generative story. A datum x ∈ ℝᴰ belongs to one of K classes,

    y ~ Cat(π),    x | y ~ N(μ_y, Σ),    Σ common to all classes.

So log p(x) = log Σ_k π_k N(x | μ_k, Σ), and since the quadratic term is the same for every class,
the posterior is a softmax of an affine map:

    p(y = k | x) = softmax_k(a_kᵀ x + c_k),    a_k = Σ⁻¹ μ_k,    c_k = log π_k − ½ μ_kᵀ Σ⁻¹ μ_k,

whose boundaries between classes are hyperplanes, the linear discriminants.

Inference. The guide is q(y | x) = softmax(A x + c), amortised and learnt, so its family contains
the exact posterior and the ELBO reaches log p(x). The class is a latent, marked for parallel
enumeration in the guide: under ``TraceEnum_ELBO`` (see ``objective``) the expectation over it is a
sum of K terms, and the gradient has no noise. Trained without labels, the model finds classes as a
mixture of Gaussians with a common covariance. With labels, the maximum likelihood estimates are

    π_k = N_k / N,    μ_k = mean of class k,    Σ = (1/N) Σ_n (x_n − μ_{y_n}) (x_n − μ_{y_n})ᵀ.

References: The Use of Multiple Measurements in Taxonomic Problems, R. A. Fisher, 1936; The
Elements of Statistical Learning, Trevor Hastie, Robert Tibshirani and Jerome Friedman, 2009
(section 4.3).
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from vilvm.lvm import rebuildable, training_tensors

__all__ = ["LinearDiscriminant", "objective", "tiny"]


@rebuildable
class LinearDiscriminant(nn.Module):
    """Linear discriminant analysis of rows of `data_dim` numbers, with an amortised guide.

    Arguments:
        data_dim: D, the size of a datum.
        num_classes: K, at least 2.

    Raises:
        ValueError: a size is too small.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.linear_discriminant import LinearDiscriminant, objective
        >>> lvm, x = LinearDiscriminant(data_dim=2, num_classes=3), torch.randn(20, 2)
        >>> vilvm.fit(lvm, x, steps=20, objective=objective()).stopped
        'finished'
    """

    def __init__(self, data_dim: int = 2, num_classes: int = 3):
        super().__init__()
        if data_dim < 1 or num_classes < 2:
            raise ValueError(
                "LinearDiscriminant: needs data_dim of at least 1 and num_classes of at least 2; "
                f"got {data_dim} and {num_classes}."
            )
        self.logits = nn.Parameter(torch.zeros(num_classes))  # of π
        self.mu = nn.Parameter(torch.randn(num_classes, data_dim))
        self.unconstrained_L = nn.Parameter(torch.zeros(data_dim, data_dim))
        self.posterior_logits = nn.Linear(data_dim, num_classes)  # A and c

    @property
    def L(self) -> Tensor:
        """The Cholesky factor of Σ, shape (data_dim, data_dim)."""
        return transform_to(constraints.lower_cholesky)(self.unconstrained_L)

    def model(self, x: Tensor) -> None:
        """p(x | y) p(y); x has shape (batch, data_dim)."""
        pyro.module("linear_discriminant", self)
        L = self.L
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.MultivariateNormal(self.mu[y], scale_tril=L), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(y | x)."""
        q = dist.Categorical(logits=self.posterior_logits(x))
        with pyro.plate("data", len(x)):
            pyro.sample("y", q, infer={"enumerate": "parallel"})

    def exact_log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), exact, in nats, shape (num_data,); x has shape (num_data, data_dim)."""
        return self._log_joint(x).logsumexp(-1)

    def exact_posterior(self, x: Tensor) -> dist.Categorical:
        """p(y | x), exact, for x of shape (num_data, data_dim)."""
        return dist.Categorical(logits=self._log_joint(x))

    def classify(self, x: Tensor) -> Tensor:
        """The probability of every class, p(y | x), exact: shape (num_data, num_classes)."""
        return self.exact_posterior(x).probs

    def _log_joint(self, x: Tensor) -> Tensor:
        """log p(x, y = k) for every datum and class, shape (num_data, num_classes)."""
        log_likelihood = dist.MultivariateNormal(self.mu, scale_tril=self.L).log_prob(
            x[:, None]
        )
        return log_likelihood + self.logits.log_softmax(-1)

    @torch.no_grad()
    def optimise_guide(self) -> "LinearDiscriminant":
        """Sets the guide to the exact posterior of the current model, and returns the model."""
        A = torch.cholesky_solve(self.mu.double().T, self.L.double()).T
        self.posterior_logits.weight.copy_(A)
        self.posterior_logits.bias.copy_(
            self.logits.log_softmax(-1) - (A * self.mu).sum(-1) / 2
        )
        return self

    @torch.no_grad()
    def maximise(self, x: Any, y: Any) -> "LinearDiscriminant":
        """Sets all parameters to maximum likelihood on labelled data; returns the model.

        The guide becomes the exact posterior.

        Arguments:
            x: shape (num_data, data_dim), a tensor, array or frame; computed in float64.
            y: the classes, whole numbers from 0 to num_classes − 1, shape (num_data,).

        Raises:
            ValueError: a label is out of range, a class has no datum, or the data within the
                classes span too few dimensions.
        """
        num_classes = len(self.logits)
        x, y = training_tensors(self, (x, y), "maximise", dtype=torch.float64)
        x = x.double()
        count = _class_counts(x, y, num_classes)
        sums = torch.zeros(num_classes, x.shape[1]).to(x).index_add(0, y, x)
        mu = sums / count[:, None]
        within = x - mu[y]
        L, failed = torch.linalg.cholesky_ex(within.T @ within / len(x))
        if int(failed):
            raise ValueError(
                f"LinearDiscriminant: the covariance within the classes of {len(x)} data in "
                f"{x.shape[1]} dimensions is singular; give more data, or drop constant columns."
            )
        self.logits.copy_((count.double() / len(x)).log())
        self.mu.copy_(mu)
        self.unconstrained_L.copy_(L.tril(-1) + L.diagonal().log().diag())
        return self.optimise_guide()


def _class_counts(x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """The number of data of every class, shape (num_classes,); checks the labels."""
    outside = (y < 0) | (y >= num_classes)
    if y.shape != x.shape[:1] or y.is_floating_point() or bool(outside.any()):
        raise ValueError(
            f"LinearDiscriminant: y must hold, for each of {len(x)} data, a whole number from "
            f"0 to {num_classes - 1}."
        )
    count = torch.bincount(y, minlength=num_classes)
    if bool((count == 0).any()):
        raise ValueError(
            f"LinearDiscriminant: class {int(count.argmin())} has no datum; give every class "
            "at least one."
        )
    return count


def objective() -> TraceEnum_ELBO:
    """The ELBO; its expectation over the class is summed, not sampled.

    Returns:
        An objective for ``vilvm.fit`` or ``pyro.infer.SVI``.

    Examples:
        >>> from vilvm.models.linear_discriminant import objective
        >>> type(objective()).__name__
        'TraceEnum_ELBO'
    """
    return TraceEnum_ELBO(max_plate_nesting=1)


def tiny() -> tuple[LinearDiscriminant, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.linear_discriminant import tiny
        >>> lvm, batch = tiny()
    """
    return LinearDiscriminant(data_dim=3, num_classes=2), torch.randn(5, 3)
