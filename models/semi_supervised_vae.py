"""The semi-supervised variational auto-encoder, M2: labels where they are known, else summed over.

Generative story. A datum x has a class y of K and a style z, independent of each other:

    y ~ Cat(1/K, …, 1/K),    z ~ N(0, I),    x | y, z ~ Πⱼ Bernoulli(σ(g(y, z)ⱼ)).

Inference. The guide is q(y | x) q(z | x, y): a classifier, and an encoder that sees the class.
Where y is known, it is observed, and the bound is

    log p(x, y) ≥ E_q(z|x,y)[log p(x | y, z) + log p(y) + log p(z) − log q(z | x, y)] = −L(x, y).

Where it is not, it is a latent. Its expectation is a sum of K terms, exact and without the noise
of drawing y (``TraceEnum_ELBO``; see ``objective``):

    log p(x) ≥ Σ_y q(y | x) [−L(x, y) − log q(y | x)] = −U(x).

Classifier. L does not contain q(y | x), which would learn from unlabelled data alone. So −α log
q(y | x) is added to the loss of a labelled datum, as a ``vilvm.guides.penalty``: it trains the
classifier, and no bound contains it.

A batch is a dict: {"x": x, "y": y} if labelled, {"x": x} if not. ``vilvm.Interleaved`` trains with
both.

Reference: Semi-Supervised Learning with Deep Generative Models, Diederik P. Kingma, Danilo J.
Rezende, Shakir Mohamed and Max Welling, 2014.
"""

from collections.abc import Mapping, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.nn.functional import one_hot

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import normal, penalty
from vilvm.lvm import rebuildable
from vilvm.networks import mlp, start_at_mean

__all__ = ["SemiSupervisedVAE", "objective", "tiny"]

Batch = Mapping[str, Tensor]


@rebuildable
class SemiSupervisedVAE(nn.Module):
    """The model M2 of binary rows of `data_dim` numbers. Train it with ``objective()``.

    Arguments:
        data_dim: D, the size of a datum.
        num_classes: K, the number of classes.
        latent_dim: d, the size of z.
        classifier_weight: α, the weight of log q(y | x) for a labelled datum.
        hidden: sizes of the hidden layers of classifier and encoder; the decoder has them in
            reverse order.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.semi_supervised_vae import SemiSupervisedVAE, objective
        >>> lvm, x = SemiSupervisedVAE(data_dim=6, num_classes=3), torch.rand(50, 6).round()
        >>> labelled = {"x": x[:10], "y": torch.arange(10) % 3}
        >>> data = vilvm.Interleaved({"x": x[10:]}, labelled)
        >>> vilvm.fit(lvm, data, epochs=2, batch_size=10, objective=objective()).stopped
        'finished'
        >>> lvm.classify(x).shape
        torch.Size([50, 3])
    """

    origin: Tensor
    uniform: Tensor

    def __init__(
        self,
        data_dim: int = 784,
        num_classes: int = 10,
        latent_dim: int = 20,
        *,
        classifier_weight: float = 50.0,
        hidden: Sequence[int] = (400, 200),
    ):
        super().__init__()
        self.num_classes, self.classifier_weight = num_classes, classifier_weight
        self.classifier = mlp(data_dim, hidden, num_classes)
        self.encoder = mlp(data_dim + num_classes, hidden, 2 * latent_dim)
        self.decoder = mlp(latent_dim + num_classes, hidden[::-1], data_dim)
        self.register_buffer("origin", torch.zeros(latent_dim))
        self.register_buffer("uniform", torch.zeros(num_classes))  # logits

    def model(self, batch: Batch) -> None:
        """p(x | y, z) p(y) p(z); "x" has shape (num_data, data_dim), "y" (num_data,) if known."""
        pyro.module("semi_supervised_vae", self)
        x = batch["x"]
        with pyro.plate("data", len(x)):
            y = pyro.sample(
                "y", dist.Categorical(logits=self.uniform), obs=batch.get("y")
            )
            z = pyro.sample("z", dist.Normal(self.origin, 1.0).to_event(1))
            pyro.sample("x", self.decode(y, z), obs=x)

    def guide(self, batch: Batch) -> None:
        """q(z | x, y), and q(y | x) if y is not known."""
        x, y = batch["x"], batch.get("y")
        q = dist.Categorical(logits=self.classifier(x))
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            else:
                penalty("classifier", -self.classifier_weight * q.log_prob(y))
            pyro.sample("z", normal(self.encoder(self._with_class(x, y))))

    def decode(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        """p(x | y, z) for y of shape (...) and z of shape (..., latent_dim), which broadcast."""
        return IndependentBernoulli(self.decoder(self._with_class(z, y)))

    def classify(self, x: Tensor) -> Tensor:
        """q(y | x), shape (..., num_classes), for x of shape (..., data_dim)."""
        return self.classifier(x).softmax(-1)

    def _with_class(self, values: Tensor, y: Tensor) -> Tensor:
        """Values of shape (..., D) and y as a one-hot vector, in one row: (..., D + K).

        An enumerated y has a dimension of its classes to the left of the data.
        """
        shape = torch.broadcast_shapes(values.shape[:-1], y.shape)
        classes = one_hot(y, self.num_classes).to(values).expand(*shape, -1)
        return torch.cat([values.expand(*shape, -1), classes], -1)

    def start_at(self, mean: Tensor) -> "SemiSupervisedVAE":
        """Starts training from the mean of the x, shape (data_dim,), and returns the model."""
        start_at_mean(self.decoder[-1], mean, "bernoulli")
        return self


def objective() -> TraceEnum_ELBO:
    """The ELBO; its expectation over an unknown label is summed, not sampled.

    Returns:
        An objective for ``vilvm.fit`` or ``pyro.infer.SVI``.

    Examples:
        >>> from vilvm.models.semi_supervised_vae import objective
        >>> type(objective()).__name__
        'TraceEnum_ELBO'
    """
    # a labelled batch has nothing to sum over, which is no mistake
    return TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)


def tiny() -> tuple[SemiSupervisedVAE, dict[str, Tensor]]:
    """Makes a small instance and a small unlabelled batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.semi_supervised_vae import tiny
        >>> lvm, batch = tiny()
    """
    lvm = SemiSupervisedVAE(6, num_classes=3, latent_dim=2, hidden=(8,))
    return lvm, {"x": torch.bernoulli(torch.full((5, 6), 0.5))}
