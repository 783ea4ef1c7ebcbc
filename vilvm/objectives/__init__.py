"""Objectives that Pyro lacks.

Training optimises a Pyro ELBO, or an objective with Pyro's interface
(``differentiable_loss(model, guide, *args)`` and ``loss(model, guide, *args)``). So ``fit``
accepts every Pyro ELBO, and ``pyro.infer.SVI`` accepts the objectives of this room. All that vilvm
reports about a trained model is a function of its log-weights, not of the training loss.
"""

from vilvm.objectives.annealed import Annealed

__all__ = ["Annealed"]
