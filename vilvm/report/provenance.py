"""The environment of a run, and the command that repeats it."""

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
    """Date, versions, machine and git commit of the working folder, each as text.

    Arguments:
        device: the device of the run; its name is looked up.
        seed: of the run.

    Returns:
        The values by name; device, seed and commit are left out if unknown.

    Examples:
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
    if commit:
        found["git commit"] = commit
    return found


def command(module: str, options: Mapping[str, Any]) -> str:
    """The command line that runs a module with these options, quoted for the shell.

    Arguments:
        module: its dotted name.
        options: by name; True is a flag, False and None are left out, a list has several values.

    Returns:
        The command.

    Examples:
        >>> from vilvm.report import command
        >>> options = {"batch_size": 9, "quick": True, "lr": None, "betas": [1, 3]}
        >>> command("examples.rate_distortion", options)
        'python -m examples.rate_distortion --batch-size=9 --quick --betas 1 3'
    """
    parts = ["python", "-m", module]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            parts.append(flag)
        elif isinstance(value, list | tuple):
            parts += [flag, *map(str, value)]
        elif value is not None and value is not False:
            parts.append(f"{flag}={value}")
    return shlex.join(parts)


def _device(device: torch.device) -> str:
    if device.type == "cuda" and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"{device} ({torch.get_num_threads()} threads)"
    return str(device)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from the sources
        return "not installed"


def _commit() -> str:
    """The commit of the working folder, and whether files differ from it; empty if unknown."""
    query = [
        "git",
        "describe",
        "--always",
        "--exclude=*",
        "--abbrev=12",
        "--dirty= and uncommitted changes",
    ]
    # Without locks, the query cannot block other git commands in the repository.
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        run = subprocess.run(
            query, capture_output=True, text=True, timeout=5, env=variables
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    if run.returncode != 0:
        return ""
    return run.stdout.strip()
