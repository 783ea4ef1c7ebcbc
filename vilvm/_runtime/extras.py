"""Optional dependencies: the error for a missing one names the extra that installs it."""

import importlib.util

__all__ = ["require"]


def require(package: str, extra: str) -> None:
    """Checks that an optional package is installed.

    Arguments:
        package: its name as it is imported.
        extra: the extra of vilvm that installs it.

    Raises:
        ImportError: the package is not installed.

    Examples:
        >>> from vilvm._runtime.extras import require
        >>> require("torch", extra="plots")
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"{package} is not installed; run: pip install 'vilvm[{extra}]'",
            name=package,
        )
