"""Networks: torch modules without Pyro."""

from vilvm.networks.conv import ConvDecoder, ConvEncoder
from vilvm.networks.gated import GatedLinear, gated_mlp
from vilvm.networks.mlp import mlp
from vilvm.networks.start import start_at_mean

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "GatedLinear",
    "gated_mlp",
    "mlp",
    "start_at_mean",
]
