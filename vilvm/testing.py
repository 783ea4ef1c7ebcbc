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
from torch import Tensor

from vilvm._compile import graph
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.lvm import LatentVariableModel, evaluation_mode, module_parameters
from vilvm.training.compiled_step import CompiledStep
from vilvm.training.fit import fit
from vilvm.weights import Layout, find_layout, log_weights
from vilvm.weights._vectorisation import strategy_of
from vilvm.weights.guide_draws import latent_draws
from vilvm.weights.log_weights import log_weights_pass

__all__ = ["check_lvm"]

_DRAWS = 4000  # for comparisons of means: a difference of a tenth of a nat is detected
_MAX_Z = 6  # of a difference of means, in standard errors

_Tiny = Callable[[], tuple[Any, Any]]


def check_lvm(
    tiny: Callable[[], tuple[LatentVariableModel, Any]], objective: Any = None
) -> str:
    """Checks that a model satisfies the contract of a latent variable model.

    The checks, in order: log-densities have the shapes of samples and data, also for one sample
    and for one datum; the latents of model and guide agree; the loss is finite and every
    parameter receives a gradient; the compiled step equals the eager step; a seed fixes every
    draw; the log-weights of a datum depend neither on the order of the batch nor on the other
    data; a state_dict makes a round trip; training changes every parameter, reproducibly; Pyro's
    global parameter store stays empty.

    Arguments:
        tiny: returns a small instance (a torch.nn.Module) and a small batch of at least two data.
        objective: of the gradient checks, ``Trace_ELBO()`` by default.

    Returns:
        How many samples are drawn at once: "vectorised" (the fastest), "vmap" or "one by one".

    Raises:
        AssertionError: the model violates the contract; the message names the first violation.
        ContractError: the pair cannot be run.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.testing import check_lvm
        >>> check_lvm(lambda: (PPCA(3, 2), torch.randn(5, 3)))
        'vectorised'
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
        return strategy_of(
            lvm, batch, log_weights_pass(lvm, layout), layout.vectorisation
        )


def _check_shapes(lvm: LatentVariableModel, batch: Any, layout: Layout) -> None:
    for num_samples in (1, 3):
        log_weight = log_weights(lvm, batch, num_samples).log_weight
        expected = (num_samples,)
        if layout.local:
            expected = (num_samples, layout.num_data)
        assert log_weight.shape == expected, (
            f"log-weights of {num_samples} samples have shape {tuple(log_weight.shape)}, "
            f"not {expected}"
        )
        assert torch.isfinite(log_weight).all(), "a log-weight is not finite"
    drawn = latent_draws(lvm, batch, 3)
    assert set(drawn) == set(layout.latents), (
        f"the guide draws {sorted(drawn)}, the model's latents are {sorted(layout.latents)}"
    )
    if layout.local and Data(batch).divisible:
        one = log_weights(lvm, Data(batch).subset(slice(0, 1)).x, 3).log_weight
        assert one.shape == (3, 1), (
            f"log-weights of one datum have shape {tuple(one.shape)}, not (3, 1)"
        )


def _check_gradients(lvm: Any, batch: Any, objective: Any) -> None:
    lvm.zero_grad(set_to_none=True)
    with seeded(1), module_parameters(lvm):
        loss = objective.differentiable_loss(lvm.model, lvm.guide, batch)
    assert torch.isfinite(loss), f"the loss is {float(loss)}"
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in _trained(lvm).items()}
    without = [name for name, gradient in gradients.items() if not _is_finite(gradient)]
    assert not without, f"no finite gradient reaches {without}"
    zero = [name for name, gradient in gradients.items() if not gradient.any()]
    assert not zero, f"the gradient of {zero} is zero everywhere"
    lvm.zero_grad(set_to_none=True)


def _trained(lvm: torch.nn.Module) -> dict[str, Any]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in lvm.named_parameters() if p.requires_grad}


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(torch.isfinite(gradient).all())


def _check_compiled(lvm: Any, batch: Any, objective: Any) -> None:
    """Runs the traced graph operation by operation; a compiler starts from this graph."""
    optimizer = torch.optim.Adam(_trained(lvm).values())
    step = CompiledStep(lvm, copy.deepcopy(objective), optimizer, compiler=graph)
    with seeded(1), module_parameters(lvm):
        difference = step.differs(batch, float(find_layout(lvm, batch).num_data))
    lvm.zero_grad(set_to_none=True)
    assert difference is None, f"the compiled step is not the eager step: {difference}"


def _check_seed(lvm: LatentVariableModel, batch: Any) -> None:
    first, second = _seeded_log_weight(lvm, batch), _seeded_log_weight(lvm, batch)
    assert torch.equal(first, second), "one seed gives two results"


def _check_order(lvm: LatentVariableModel, batch: Any) -> None:
    """Checks that log-weights of a datum depend neither on its position nor on the other data.

    In evaluation mode: batch statistics depend on the other data while they are trained.
    """
    data = Data(batch)
    last = len(data) - 1
    reversed_batch = data.subset(torch.arange(last, -1, -1)).x
    single = data.subset(slice(last, last + 1)).x
    with evaluation_mode(lvm):
        forward = _seeded_log_weight(lvm, batch, _DRAWS)
        backward = _seeded_log_weight(lvm, reversed_batch, _DRAWS).flip(-1)
        alone = _seeded_log_weight(lvm, single, _DRAWS)
    assert _means_agree(forward, backward), (
        "the order of the batch changes the log-weights of its data"
    )
    assert _means_agree(forward[:, last:], alone), (
        "the other data of a batch change the log-weights of a datum"
    )


def _means_agree(first: Tensor, second: Tensor) -> bool:
    """Whether the means over independent samples are equal: |z| < 6 for every datum."""
    error = ((first.var(0) + second.var(0)) / len(first)).sqrt()
    difference = (first.mean(0) - second.mean(0)).abs()
    tolerance = _MAX_Z * error + 1e-4 * first.abs().amax()
    return bool((difference <= tolerance).all())


def _check_state(tiny: _Tiny, lvm: Any, batch: Any) -> None:
    with seeded(7):
        other, _ = tiny()
    find_layout(other, batch)  # creates lazy parameters
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.load_state_dict(copy.deepcopy(lvm.state_dict()))
    same = torch.equal(_seeded_log_weight(lvm, batch), _seeded_log_weight(other, batch))
    assert same, (
        "a state_dict loaded into another instance does not make it the same model"
    )


def _check_training(tiny: _Tiny, objective: Any) -> None:
    first, second = (tensors_of(_trained_state(tiny, objective)) for _ in range(2))
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert same, "training twice from one seed gives two results"


def _trained_state(tiny: _Tiny, objective: Any) -> dict[str, Any]:
    """The state after two steps of training, which change every parameter."""
    with seeded(0):
        lvm, batch = tiny()
    before = {name: value.clone() for name, value in lvm.state_dict().items()}
    fit(lvm, batch, steps=2, objective=copy.deepcopy(objective))
    after = {name: p for name, p in _trained(lvm).items() if name in before}
    unchanged = [name for name, p in after.items() if torch.equal(before[name], p)]
    assert not unchanged, f"two steps of training do not move {unchanged}"
    return lvm.state_dict()


def _seeded_log_weight(
    lvm: LatentVariableModel, batch: Any, num_samples: int = 2
) -> Tensor:
    with torch.no_grad(), seeded(3):
        return log_weights(lvm, batch, num_samples).log_weight
