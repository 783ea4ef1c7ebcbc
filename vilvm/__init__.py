"""Variational inference for latent variable models, on Pyro.

A latent variable model is any object with two Pyro callables: ``model(batch)``, which is
p(x | z) p(z), and ``guide(batch)``, which is q(z | x). There are three verbs: ``fit`` trains the
pair, ``evaluate`` bounds its evidence with standard errors, and ``diagnose`` reports whether the
guide approximates the posterior.

Examples:
    >>> import torch, vilvm
    >>> from vilvm.models.ppca import PPCA
    >>> lvm, x = PPCA(data_dim=3, latent_dim=1), torch.randn(50, 3)
    >>> vilvm.fit(lvm, x, steps=20).stopped
    'finished'
    >>> sorted(vilvm.evaluate(lvm, x, num_samples=10).bounds)
    ['elbo', 'exact', 'iwae']
    >>> diagnosis = vilvm.diagnose(lvm, x)  # doctest: +SKIP
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vilvm._public import *  # noqa: F403
    from vilvm._public import __all__ as __all__


def __getattr__(name: str) -> Any:
    """A public name, or a room. The first one imports all of them, and torch.

    So ``vilvm --help`` imports neither.
    """
    room = f"vilvm.{name}"
    if room not in sys.modules and (name == "__all__" or not name.startswith("_")):
        public = importlib.import_module("vilvm._public")
        if name in ("__all__", *public.__all__):
            return globals().setdefault(name, getattr(public, name))
    if room in sys.modules:  # also one that is being imported
        return sys.modules[room]
    raise AttributeError(f"module 'vilvm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
