"""Networks: torch modules without Pyro."""

from vilvm.networks.conv import ConvDecoder, ConvEncoder
from vilvm.networks.mlp import mlp
from vilvm.networks.start import start_at_mean

__all__ = ["ConvDecoder", "ConvEncoder", "mlp", "start_at_mean"]
