"""The folder of compiled programs, and what they depend on besides their source."""

import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

__all__ = ["compiler", "path_of"]


def path_of(*source: str) -> Path:
    """Where the library of a source is kept, whether it is there or not.

    The folder is VILVM_CACHE, or else one in the user's cache folder. A container image that has
    it starts without compiling.

    Arguments:
        source: all that the library depends on besides the machine.
    """
    text = "\n".join([*source, _machine()])
    own = os.environ.get("VILVM_CACHE")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vilvm")
    root = Path(own) if own else folder / "programs"
    return root / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.so"


@cache
def compiler() -> str | None:
    """The C++ compiler: CXX, else g++; None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


@cache
def _machine() -> str:
    """The compiler, torch and the CPU."""
    found = compiler()
    version = ""
    if found is not None:
        version = subprocess.run(
            [found, "--version"], capture_output=True, text=True, check=False
        ).stdout
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = info.read_text().split("\n\n")[0].splitlines()
        cpu += "".join(line for line in lines if line.startswith(wanted))
    return f"{version}\n{torch.__version__}\n{cpu}"
