"""Amortised heads: how a guide says q(z | x), given what an encoder makes of x."""

from vilvm.guides.delta import delta, flat_prior

__all__ = ["delta", "flat_prior"]
