"""What a latent variable model that changes another one is made of."""

from typing import Any

import torch

from vilvm.lvm import ContractError, check_contract, module_parameters

__all__ = ["Wrapped"]


class Wrapped(torch.nn.Module):
    """A model around another one, `lvm`; a subclass writes `model` and `guide` with the two methods below.

    They run those of the inner model with the parameters that live in it (``pyro.param``), not with new ones of the outer model's.

    Arguments:
        lvm: the model within; a ``torch.nn.Module``.
        frozen: whether a parameter that the inner model has not met before is an error.

    Raises:
        ContractError: `lvm` is no latent variable model, or no module.
    """

    lvm: Any
    keeps_model = False  # whether p(x, z) is that of the inner model, so that its evidence is too
    keeps_guide = True  # whether q(z | x) has the parameters of the inner guide, so that it serves no other data than that does

    def __init__(self, lvm: Any, frozen: bool = False):
        super().__init__()
        check_contract(lvm)
        if not isinstance(lvm, torch.nn.Module):
            raise ContractError(
                f"{type(lvm).__name__} is no torch.nn.Module, which is needed here; make it one, or wrap it as vilvm.Pair(model, guide)."
            )
        self.lvm, self._frozen = lvm, frozen

    def inner_model(self, batch: Any, **arguments: Any) -> Any:
        """Runs p(x | z) p(z) of the inner model, with what it takes behind the batch."""
        with module_parameters(self.lvm, self._frozen):
            return self.lvm.model(batch, **arguments)

    def inner_guide(self, batch: Any, **arguments: Any) -> Any:
        """Runs q(z | x) of the inner model, with what it takes behind the batch."""
        with module_parameters(self.lvm, self._frozen):
            return self.lvm.guide(batch, **arguments)
