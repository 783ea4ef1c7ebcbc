"""What a result was made with, and the command that makes it again."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import torch

__all__ = ["command", "environment"]

_PACKAGES = {"torch": "torch", "pyro": "pyro-ppl", "vilvm": "vilvm"}


def environment(
    device: str | torch.device | None = None, seed: int | None = None
) -> dict[str, str]:
    """Versions, machine, git commit of the working folder (where there is one) and date, each in
    words.

    Arguments:
        device: that did the work; its name is looked up.
        seed: of the run.

    Example:
        >>> from vilvm.report import environment
        >>> environment("cpu", seed=3)["seed"]
        '3'
    """
    found = {"date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")}
    if device is not None:
        found["device"] = _device(torch.device(device))
    if seed is not None:
        found["seed"] = str(seed)
    found |= {
        "python": platform.python_version(),
        **{name: _version(package) for name, package in _PACKAGES.items()},
    }
    found |= {"system": f"{platform.system()} {platform.machine()}"}
    commit = _commit()
    return {**found, "git commit": commit} if commit else found


def command(module: str, options: Mapping[str, Any]) -> str:
    """The command line that runs `module` with these options: True is a flag, False and None are
    left out.

    Example:
        >>> from vilvm.report import command
        >>> command("examples.vae_mnist", {"latent": 20, "batch_size": 200, "quick": True, "epochs": None})
        'python -m examples.vae_mnist --latent=20 --batch-size=200 --quick'
    """
    words = ["python", "-m", module]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words.append(f"{flag}={value}")
    return shlex.join(words)


def _device(device: torch.device) -> str:
    if device.type == "cuda" and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "not installed"


def _commit() -> str:
    """Of the working folder, and whether files differ from it; empty without git or outside a
    repository.
    """
    words = [
        "git",
        "describe",
        "--always",
        "--exclude=*",
        "--abbrev=12",
        "--dirty= and uncommitted changes",
    ]
    try:
        # Without locks: a report must not stand in the way of whoever works in the repository.
        run = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=5,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
