"""Coupling flows in the coordinates of a Gaussian, trained by stochastic steps.

RealNVP: each layer moves half of the dimensions by an affine map whose coefficients are a network
of the other half. The iterates of the training are averaged.

References: Density estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio, 2017; Disentangling
impact of capacity, objective, batchsize, estimators, and step-size on flow VI, Agrawal and Domke,
2024.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vilvm.distributions import CouplingLayers
from vilvm.inference._approximations import Approximation, Chain
from vilvm.inference._target import Target
from vilvm.wrappers.in_float64 import float64

__all__ = ["flow_of", "train"]

_DRAWS = 128  # of a step
_RATE = 2e-3
_AVERAGED = 0.5  # share of the steps, the last ones, whose iterates are averaged


def flow_of(target: Target, gaussian: Approximation, layers: int) -> Chain:
    """Coupling layers in the coordinates of a Gaussian, which stays as it is."""
    for parameter in gaussian.parameters():
        parameter.requires_grad_(False)
    with float64():
        return Chain(Coupling(target.dim, layers), gaussian)


class Coupling(nn.Module):
    """``CouplingLayers`` as a map with its log-determinant.

    Arguments:
        dim: D.
        layers: coupling layers.
    """

    def __init__(self, dim: int, layers: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.layers = CouplingLayers(dim, layers, [max(32, 4 * dim)] * 2)

    def forward(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """u at ε of shape (S, D), and log |∂u/∂ε|, shape (S,)."""
        log_det = eps.new_zeros(len(eps))
        for step in self.layers.steps():
            moved = step(eps)
            log_det = log_det + step.log_abs_det_jacobian(eps, moved)
            eps = moved
        return eps, log_det

    def inverse(self, u: Tensor) -> Tensor:
        """ε at u of shape (S, D)."""
        for step in reversed(self.layers.steps()):
            u = step.inv(u)
        return u


@torch.enable_grad()
def train(
    target: Target,
    flow: Approximation,
    steps: int,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Maximises the ELBO, and sets the parameters to the mean of the last iterates.

    Arguments:
        target: the log-density.
        flow: u(ε), which is changed in place.
        steps: of Adam, with a falling rate.
        is_over: whether the time is up.
    """
    trained = [p for p in flow.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mean = torch.optim.swa_utils.AveragedModel(flow)
    for step in range(steps):
        if is_over():
            break
        eps = torch.randn(_DRAWS, target.dim, dtype=torch.float64)
        u, log_det = flow(eps)
        _, slope = target.gradient(u.detach())
        loss = -((u * slope).sum() + log_det.expand(_DRAWS).sum()) / _DRAWS
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step >= steps * (1 - _AVERAGED):
            mean.update_parameters(flow)
    if mean.n_averaged > 0:
        flow.load_state_dict(mean.module.state_dict())
