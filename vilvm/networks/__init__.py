"""Networks: torch modules that know nothing of Pyro."""

from vilvm.networks.conv import ConvDecoder, ConvEncoder
from vilvm.networks.mlp import mlp

__all__ = ["ConvDecoder", "ConvEncoder", "mlp"]
