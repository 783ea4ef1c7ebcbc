"""Attributes of a tree: versions of libraries, and the protocol of its data."""

from importlib.metadata import version
from typing import Any

from vilvm.data.data import Data

__all__ = ["library_versions", "protocol_of"]


def library_versions() -> dict[str, str]:
    """The versions of the libraries that made a tree."""
    found = {
        "inference_library": "vilvm",
        "inference_library_version": version("vilvm"),
    }
    for package in ("torch", "pyro-ppl", "arviz"):
        found[f"{package.split('-')[0]}_version"] = version(package)
    return found


def protocol_of(data: Data) -> dict[str, Any]:
    """The protocol of the data; netCDF attributes are numbers or strings."""
    protocol = data.protocol()
    return {
        key: value if isinstance(value, int) else str(value)
        for key, value in protocol.items()
    }
