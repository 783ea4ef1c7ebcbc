"""The conformance test of a latent variable model, for the gallery's models and for yours.

from vilvm.testing import check_lvm

def test_my_model():
    check_lvm(lambda: (MyModel(), torch.randn(5, 3)))
"""

import copy
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO

from vilvm._compile import graph
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.lvm import LatentVariableModel, evaluation_mode, module_parameters
from vilvm.training.compiled_step import CompiledStep
from vilvm.training.fit import fit
from vilvm.weights import LogWeights, find_layout, log_weights, posterior
from vilvm.weights._vectorisation import way_of
from vilvm.weights.log_weights import log_weights_pass

__all__ = ["check_lvm"]

_DRAWS = 4000  # for comparisons of means, so that a difference of a tenth of a nat is seen


def check_lvm(tiny: Callable[[], tuple[LatentVariableModel, Any]], objective: Any = None) -> str:
    """Holds a model to the contract, and raises AssertionError with the first clause it breaks.

    It runs on any batch it is given: log-densities have the shapes of samples and data, also for
    one sample and for one datum; the latents of model and guide agree; loss is finite and every
    parameter receives a gradient; neither the order of the batch nor the others in it matter to a
    datum; a seed fixes every draw; the state_dict makes a round trip; training moves the
    parameters, the same way each time; a step that can be compiled is the eager step; Pyro's
    global parameter store stays empty.

    Arguments:
        tiny: returns a small instance (a torch.nn.Module) and a small batch of at least two data.
        objective: what the gradient is checked on, ``Trace_ELBO()`` by default.

    Returns:
        The way that many samples take: "vectorised", "vmap" or "one by one"
            (``vilvm.weights._vectorisation``). The first is the fastest.

    Raises:
        AssertionError: a clause is broken.
        ContractError: the pair cannot be run at all.
    """
    objective = objective or Trace_ELBO()
    stored = set(pyro.get_param_store())
    with seeded(0):
        lvm, batch = tiny()
    assert isinstance(lvm, torch.nn.Module), (
        "tiny() must return a torch.nn.Module (vilvm.Pair makes one of two functions)"
    )
    layout = find_layout(lvm, batch)
    _check_shapes(lvm, batch, layout)
    _check_gradients(lvm, batch, objective)
    _check_compiled(lvm, batch, objective)
    _check_seed(lvm, batch)
    if layout.local and Data(batch).divisible:
        _check_order(lvm, batch)
    _check_state(tiny, lvm, batch)
    _check_training(tiny, objective)
    added = set(pyro.get_param_store()) - stored
    assert not added, f"Pyro's global parameter store now holds {sorted(added)}"
    with torch.no_grad(), seeded(4), module_parameters(lvm), evaluation_mode(lvm):
        return way_of(lvm, batch, log_weights_pass(lvm, layout), layout.vectorisation)


def _check_shapes(lvm: LatentVariableModel, batch: Any, layout: Any) -> None:
    for num_samples in (1, 3):
        weights = log_weights(lvm, batch, num_samples)
        expected = (num_samples, layout.num_data) if layout.local else (num_samples,)
        assert weights.log_weight.shape == expected, (
            f"log-weights of {num_samples} samples have shape {tuple(weights.log_weight.shape)}, "
            f"not {expected}"
        )
        assert torch.isfinite(weights.log_weight).all(), "a log-weight is not finite"
    drawn = posterior(lvm, batch, 3)
    assert set(drawn) == set(layout.latents), (
        f"the guide draws {sorted(drawn)}, the model's latents are {sorted(layout.latents)}"
    )
    if layout.local and Data(batch).divisible:
        one = log_weights(lvm, Data(batch).subset(slice(0, 1)).x, 3)
        assert one.log_weight.shape == (3, 1), (
            f"log-weights of one datum have shape {tuple(one.log_weight.shape)}, not (3, 1)"
        )


def _check_gradients(lvm: Any, batch: Any, objective: Any) -> None:
    lvm.zero_grad(set_to_none=True)
    with seeded(1), module_parameters(lvm):
        loss = objective.differentiable_loss(lvm.model, lvm.guide, batch)
    assert torch.isfinite(loss), f"the loss is {float(loss)}"
    loss.backward()
    without = [
        n
        for n, p in lvm.named_parameters()
        if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())
    ]
    assert not without, f"no finite gradient reaches {without}"
    still = [
        n
        for n, p in lvm.named_parameters()
        if p.requires_grad and p.grad is not None and not p.grad.any()
    ]
    assert not still, f"the gradient of {still} is zero everywhere"
    lvm.zero_grad(set_to_none=True)


def _check_compiled(lvm: Any, batch: Any, objective: Any) -> None:
    """As a graph that runs operation by operation, which is what a compiler is given."""
    parameters = [p for p in lvm.parameters() if p.requires_grad]
    step = CompiledStep(
        lvm, copy.deepcopy(objective), torch.optim.Adam(parameters), compiler=graph
    )
    with seeded(1), module_parameters(lvm):
        difference = step.differs(batch, float(find_layout(lvm, batch).num_data))
    lvm.zero_grad(set_to_none=True)
    assert difference is None, f"the compiled step is not the eager step: {difference}"


def _check_seed(lvm: LatentVariableModel, batch: Any) -> None:
    assert torch.equal(
        _seeded_weights(lvm, batch).log_weight, _seeded_weights(lvm, batch).log_weight
    ), "one seed gives two results"


def _check_order(lvm: LatentVariableModel, batch: Any) -> None:
    """What the densities and the guide say of a datum must not depend on its place in the batch,
    nor on who else is there.
    """
    data = Data(batch)
    last = len(data) - 1
    with evaluation_mode(lvm):  # batch statistics do depend on the others, while they are learnt
        there = _seeded_weights(lvm, batch, _DRAWS).log_weight
        back = _seeded_weights(
            lvm, data.subset(torch.arange(last, -1, -1)).x, _DRAWS
        ).log_weight.flip(-1)
        alone = _seeded_weights(lvm, data.subset(slice(last, last + 1)).x, _DRAWS).log_weight
    assert _agree(there, back), "the order of the batch changes the log-weights of its data"
    assert _agree(there[:, last:], alone), (
        "the other data of a batch change the log-weights of a datum"
    )


def _agree(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether the means over samples, of different draws, are equal: |z| < 6 for every datum."""
    error = ((first.var(0) + second.var(0)) / len(first)).sqrt()
    return bool(
        ((first.mean(0) - second.mean(0)).abs() <= 6 * error + 1e-4 * first.abs().amax()).all()
    )


def _check_state(tiny: Callable[[], tuple[Any, Any]], lvm: Any, batch: Any) -> None:
    with seeded(7):
        other, _ = tiny()
    find_layout(other, batch)  # makes parameters that are made on first use
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.load_state_dict(copy.deepcopy(lvm.state_dict()))
    same = torch.equal(
        _seeded_weights(lvm, batch).log_weight, _seeded_weights(other, batch).log_weight
    )
    assert same, "a state_dict loaded into another instance does not make it the same model"


def _check_training(tiny: Callable[[], tuple[Any, Any]], objective: Any) -> None:
    states = []
    for _ in range(2):
        with seeded(0):
            lvm, batch = tiny()
        before = {n: v.clone() for n, v in lvm.state_dict().items()}
        fit(lvm, batch, steps=2, objective=copy.deepcopy(objective))
        states.append(lvm.state_dict())
        moved = [
            n
            for n, p in lvm.named_parameters()
            if p.requires_grad and n in before and torch.equal(before[n], p)
        ]
        assert not moved, f"two steps of training do not move {moved}"
    assert all(torch.equal(a, b) for a, b in zip(*(tensors_of(s) for s in states), strict=True)), (
        "training twice from one seed gives two results"
    )


def _seeded_weights(lvm: LatentVariableModel, batch: Any, num_samples: int = 2) -> LogWeights:
    with torch.no_grad(), seeded(3):
        return log_weights(lvm, batch, num_samples)
