"""Objectives that Pyro lacks.

Training optimises a Pyro ELBO, or an objective with Pyro's interface
(``differentiable_loss(model, guide, *args)`` and ``loss(model, guide, *args)``). So ``fit``
accepts every Pyro ELBO, and ``pyro.infer.SVI`` accepts the objectives of this room. All that vilvm
reports about a trained model is a function of its log-weights, not of the training loss.
"""

from vilvm.objectives.annealed import Annealed
from vilvm.objectives.beta import BetaELBO
from vilvm.objectives.beta_tc import BetaTC
from vilvm.objectives.dreg import DReG
from vilvm.objectives.free_bits import FreeBits
from vilvm.objectives.iwae import IWAE
from vilvm.objectives.stl import STL

__all__ = ["IWAE", "STL", "Annealed", "BetaELBO", "BetaTC", "DReG", "FreeBits"]
