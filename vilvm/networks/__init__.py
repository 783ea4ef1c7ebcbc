"""Encoders and decoders: torch modules that know nothing of Pyro."""

from vilvm.networks.mlp import mlp

__all__ = ["mlp"]
