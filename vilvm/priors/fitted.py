"""Fitted priors p̂(z): densities fitted to the codes of a trained model.

The codes are draws from the aggregated posterior, one per datum,

    q(z) = E_x q(z | x);

for an auto-encoder they are f(x). p̂ is the maximum likelihood density of a family:

- "diagonal": N(μ̂, diag σ̂²), the naive baseline "fit a Gaussian to the codes and sample";
- "full":     N(μ̂, Σ̂);
- "mixture":  Σₖ πₖ N(μₖ, Σₖ), by expectation maximisation (scikit-learn);
- "flow":     the density of μ̂ + L T(u), u ~ N(0, I), L Lᵀ = Σ̂, T a masked autoregressive flow
              (Pyro's transforms).

The ELBO of a variational auto-encoder contains −KL(q(z) ‖ p(z)); a fitted prior shows how large
this loss is.

References: ELBO surgery: yet another way to carve up the variational evidence lower bound, Hoffman
and Johnson, 2016; Masked Autoregressive Flow for Density Estimation, Papamakarios, Pavlakou and
Murray, 2017.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor, nn

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.lvm import ContractError, LatentVariableModel, fixed_beside, rebuildable
from vilvm.training import fit, one_cycle
from vilvm.weights import find_layout
from vilvm.weights.guide_draws import latent_draws

__all__ = ["FittedPrior", "fit_prior"]

KINDS = ("diagonal", "full", "mixture", "flow")
_SMALLEST = 1e-6  # smallest variance, relative to the largest variance of the codes
_LAYERS, _HIDDEN, _BATCH, _RATE = 4, [64, 64], 500, 3e-3  # of a flow and its training


@rebuildable
class FittedPrior(nn.Module):
    """A density of one latent vector, with frozen parameters.

    It is also a model of codes without a latent, whose ELBO is the log-likelihood of the codes. A
    flow is trained by it.

    Arguments:
        latent: the name of the latent.
        kind: "diagonal", "full", "mixture" or "flow".
        parameters: the tensors of a density of that kind, by name; for a flow, mean and
            scale_tril of the affine map at its end.
        layers: of a flow; each maps codes closer to N(0, I).

    Examples:
        >>> import torch
        >>> from vilvm.priors import FittedPrior
        >>> prior = FittedPrior("z", "diagonal", {"mean": torch.zeros(2), "scale": torch.ones(2)})
        >>> prior.distribution().event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        latent: str,
        kind: str,
        parameters: dict[str, Tensor],
        layers: Sequence[nn.Module] = (),
    ):
        super().__init__()
        self.latent, self.kind = latent, kind
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        self.layers = nn.ModuleList(layers)

    def forward(self, encode: Any = None) -> dist.TorchDistribution:
        """p̂(z), so that a model takes it in place of a prior that is trained with it.

        Arguments:
            encode: not used; a ``VampPrior`` needs it, and all priors are called alike.

        Returns:
            The result of ``distribution``.
        """
        return self.distribution()

    def distribution(self) -> dist.TorchDistribution:
        """p̂(z), of batch shape () and event shape (d,)."""
        mean = self.get_parameter("mean")
        if self.kind == "diagonal":
            return dist.Normal(mean, self.get_parameter("scale")).to_event(1)
        scale_tril = self.get_parameter("scale_tril")
        if self.kind == "flow":
            return self._flow(mean, scale_tril)
        normal = dist.MultivariateNormal(mean, scale_tril=scale_tril)
        if self.kind == "full":
            return normal
        return dist.MixtureSameFamily(
            dist.Categorical(self.get_parameter("weights")), normal
        )

    def _flow(self, mean: Tensor, scale_tril: Tensor) -> dist.TorchDistribution:
        white = dist.Normal(torch.zeros_like(mean), 1.0).to_event(1)
        back = transforms.Permute(
            torch.arange(len(mean) - 1, -1, -1, device=mean.device)
        )
        # a layer maps a code to noise (for a density) in one pass, and noise to a code in d passes
        steps = [step for layer in self.layers for step in (back, layer.inv)][::-1]
        return dist.TransformedDistribution(
            white, [*steps, transforms.LowerCholeskyAffine(mean, scale_tril)]
        )

    def model(self, codes: Tensor) -> None:
        """p̂(z), observed at codes of shape (num_data, d)."""
        with pyro.plate("data", len(codes)):
            pyro.sample(self.latent, self.distribution(), obs=codes)

    def guide(self, codes: Tensor) -> None:
        """Samples nothing: the model has no latent."""

    def __getstate__(self) -> dict[str, Any]:
        # a layer caches its last tensors; those with a gradient history cannot be copied
        for layer in self.layers:
            cached: Any = layer
            cached._cached_x_y, cached._cached_log_scale = (None, None), None
        return self.__dict__

    def extra_repr(self) -> str:
        """Its kind and latent, for ``repr``."""
        return f"{self.kind} of {self.latent!r}"


def fit_prior(
    lvm: LatentVariableModel,
    data: Any,
    kind: str = "full",
    *,
    components: int = 10,
    steps: int = 3000,
    latent: str | None = None,
    batch_size: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> FittedPrior:
    """Fits a prior to the codes of a trained model on its training data.

    Arguments:
        lvm: the trained model; its latent is in the plate over the data.
        data: the training data; a fresh transform is applied once.
        kind: "diagonal", "full", "mixture" or "flow".
        components: number of components of a mixture.
        steps: of a flow's training by ``vilvm.fit``, which keeps the parameters that are best on a
            held-out tenth of the codes.
        latent: the name of the latent, if there are several; one vector for each datum.
        batch_size: number of data a pass.
        seed: of the codes, the transform, and the initialisation and training of a mixture or
            flow.
        progress: whether to show a flow's progress.

    Returns:
        The prior, on the device of the model.

    Raises:
        ValueError: `kind` is unknown, or there are fewer codes than the density needs.
        ContractError: there is no such latent, or it is not one vector for each datum.
        KeyboardInterrupt: Ctrl-C or SIGTERM during the training of a flow.

    References: ELBO surgery: yet another way to carve up the variational evidence lower bound,
    Hoffman and Johnson, 2016; Masked Autoregressive Flow for Density Estimation, Papamakarios,
    Pavlakou and Murray, 2017.

    Examples:
        >>> import torch
        >>> from vilvm.models.autoencoder import Autoencoder
        >>> from vilvm.priors import fit_prior
        >>> prior = fit_prior(Autoencoder(data_dim=6, latent_dim=2), torch.rand(50, 6), "diagonal")
        >>> prior.distribution().event_shape
        torch.Size([2])
    """
    seed = check_seed("fit_prior: seed", seed)
    if kind not in KINDS:
        raise ValueError(
            f"fit_prior: unknown kind {kind!r}; choose from {list(KINDS)}."
        )
    components = check_number("fit_prior: components", components)
    steps = check_number("fit_prior: steps", steps)
    batch_size = check_number("fit_prior: batch_size", batch_size)
    name, codes = _codes(lvm, data, latent, seed, batch_size)
    _check_codes(codes, kind, components)
    if kind == "flow":
        return _flow(name, codes, steps, seed, progress)
    z = codes.double()
    if kind == "diagonal":
        parameters = _diagonal(z)
    elif kind == "full":
        parameters = _full(z)
    else:
        parameters = _mixture(z, components, seed)
    return FittedPrior(name, kind, {n: v.to(codes) for n, v in parameters.items()})


def _check_codes(codes: Tensor, kind: str, components: int) -> None:
    dim = codes.shape[1]
    needed = {
        "diagonal": 2,
        "full": dim + 1,
        "mixture": max(components, dim + 1),
        "flow": max(20, 2 * dim),
    }[kind]
    if len(codes) < needed:
        raise ValueError(
            f"fit_prior: a {kind} prior of {dim} dimensions needs at least {needed} data; got "
            f"{len(codes)}."
        )
    if not bool(torch.isfinite(codes).all()) or bool((codes == codes[0]).all()):
        raise ValueError(
            "fit_prior: the codes are all the same, or not finite, so no density fits them; train "
            "the model first."
        )


@torch.no_grad()
def _codes(
    lvm: LatentVariableModel, data: Any, latent: str | None, seed: int, batch_size: int
) -> tuple[str, Tensor]:
    """The name of the latent, and a draw for each datum, shape (num_data, d)."""
    fixed = fixed_beside(lvm, data, seed)
    batches = fixed.chunks(batch_size) if fixed.divisible else [fixed.loaded()]
    with seeded(seed, fixed.device, "training"):
        layout = find_layout(lvm, batches[0].x)
    names = layout.latents
    if latent is None and len(names) == 1:
        latent = names[0]
    if latent is None or latent not in names:
        raise ContractError(
            f"fit_prior: the latents are {list(names)}; select one of them with latent=...."
        )
    name = latent
    with seeded(seed, fixed.device, "training"):
        parts = [latent_draws(lvm, batch.x, 1)[name][0] for batch in batches]
    if name not in layout.data_axes or any(part.dim() != 2 for part in parts):
        raise ContractError(
            f"fit_prior: latent {name!r} has shape {tuple(parts[0].shape)}, but a prior needs one "
            "vector for each datum."
        )
    return name, torch.cat(parts)


def _diagonal(z: Tensor) -> dict[str, Tensor]:
    variance = z.var(0, correction=0)
    return {
        "mean": z.mean(0),
        "scale": variance.clamp(min=_SMALLEST * variance.max()).sqrt(),
    }


def _full(z: Tensor) -> dict[str, Tensor]:
    cov = torch.cov(z.T, correction=0).reshape(z.shape[1], -1)
    identity = torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
    floor = _SMALLEST * cov.diagonal().max() * identity
    return {"mean": z.mean(0), "scale_tril": torch.linalg.cholesky(cov + floor)}


def _mixture(z: Tensor, components: int, seed: int) -> dict[str, Tensor]:
    from sklearn.mixture import GaussianMixture  # here, since its import takes seconds

    floor = _SMALLEST * float(z.var(0, correction=0).max())
    mixture = GaussianMixture(components, reg_covar=floor, random_state=seed).fit(
        z.cpu().numpy()
    )
    return {
        "weights": torch.from_numpy(mixture.weights_),
        "mean": torch.from_numpy(mixture.means_),
        "scale_tril": torch.linalg.cholesky(torch.from_numpy(mixture.covariances_)),
    }


@rebuildable
def _flow_layer(dim: int, widths: list[int]) -> nn.Module:
    return transforms.affine_autoregressive(dim, widths)


def _flow(
    name: str, codes: Tensor, steps: int, seed: int, progress: bool
) -> FittedPrior:
    dim = codes.shape[1]
    if dim < 2:
        raise ValueError(
            "fit_prior: an autoregressive flow needs a latent of two dimensions or more; use a "
            "mixture."
        )
    if codes.dtype != torch.float32:
        raise ValueError(
            f"fit_prior: Pyro's flow has single precision, and the codes are {codes.dtype}; "
            "use a mixture, or lvm.float()."
        )
    widths = [max(size, dim) for size in _HIDDEN]
    with seeded(seed, codes.device, "training"):
        layers = [_flow_layer(dim, widths) for _ in range(_LAYERS)]
        order = torch.randperm(len(codes)).to(codes.device)
    held_out, train = codes[order[: len(codes) // 10]], codes[order[len(codes) // 10 :]]
    affine = {n: v.to(codes) for n, v in _full(train.double()).items()}
    prior = FittedPrior(name, "flow", affine, layers).to(codes)
    fitted = fit(
        prior,
        train,
        steps=steps,
        batch_size=_BATCH,
        **one_cycle(_RATE, steps),
        validation=held_out,
        clip=10.0,
        seed=seed,
        progress=progress,
    )
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt(
            "fit_prior was interrupted before the flow was trained."
        )
    return prior.requires_grad_(False)
