"""Objectives that Pyro lacks.

They speak its protocol, so ``fit`` and plain ``pyro.infer.SVI`` take them alike.
"""

from vilvm.objectives.annealed import Annealed

__all__ = ["Annealed"]
