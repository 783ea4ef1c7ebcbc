"""Signal and noise of a gradient, by estimator and by group of parameters.

An estimator's gradient g of a group of parameters has, over its draws,

    SNR = ‖E g‖ / √tr Var g,     elementwise SNR = √mean_p (E g_p)² / Var g_p,

and about 1/SNR² draws are needed to see its direction through the noise. For M draws with mean ḡ
and variances s², ‖ḡ‖² is too large by tr Var g / M, and 1/s² by a factor that for normal
gradients is (M − 1)/(M − 3), so that

    ‖E g‖² ≈ ‖ḡ‖² − Σ s²/M,      (E g_p)² / Var g_p ≈ ḡ_p²/s_p² · (M − 3)/(M − 1) − 1/M.

Whether E g differs from zero at all is tested by flipping signs: if E g is zero and g symmetric,
the sum of the draws' twelve blocks is as long with any signs before them.

A tighter bound can have a worse gradient: with K importance samples the SNR of the decoder's
gradient grows as √K, and that of the encoder's falls as 1/√K.

Reference: Tighter Variational Bounds are Not Necessarily Better, Rainforth, Kosiorek, Le,
Maddison, Igl, Wood and Teh, 2018.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability
from vilvm._runtime.random import seeded
from vilvm._runtime.results import Result, frame_of
from vilvm.data.data import Data
from vilvm.diagnostics._gradient_sums import BLOCKS, GradientSums, ratios, sign_flips
from vilvm.diagnostics._verdicts.gradient_snr import BETTER, LOW, gradient_snr_finding
from vilvm.diagnostics.finding import Finding
from vilvm.lvm import ContractError, evaluation_mode, module_parameters
from vilvm.training.step import backward
from vilvm.weights import find_layout
from vilvm.weights.prepared import Prepared, pair_and_data

__all__ = ["GradientSNR", "GroupSNR", "gradient_snr"]


class GroupSNR(NamedTuple):
    """The signal-to-noise ratio of one estimator's gradient in one group of parameters.

    Arguments:
        snr: ‖E g‖ / √tr Var g; infinite for a gradient without noise.
        se: its standard error, by the jackknife over blocks of draws.
        elementwise: root mean square of the ratios of single parameters whose gradient varies.
        p_value: p-value of E g = 0.
        num_parameters: number of parameters with a gradient.

    Examples:
        >>> from vilvm.diagnostics.gradient_snr import GroupSNR
        >>> GroupSNR(0.5, 0.1, 0.5, 0.01, 3).snr
        0.5
    """

    snr: float
    se: float
    elementwise: float
    p_value: float
    num_parameters: int


@dataclass(frozen=True, repr=False)
class GradientSNR(Result):
    """Signal-to-noise ratios of gradients.

    Arguments:
        groups: by objective, then by group of parameters.
        num_draws: number of gradients of each objective.
        minibatch: whether the draws also differ in their data.
        false_alarm: false-alarm rate of the tests, over all groups and objectives.

    Examples:
        >>> from vilvm.diagnostics.gradient_snr import GradientSNR, GroupSNR
        >>> groups = {"ELBO": {"W": GroupSNR(0.5, 0.1, 0.5, 0.001, 3)}}
        >>> GradientSNR(groups, 120, minibatch=False, false_alarm=0.01).finding.severity.name
        'OK'
    """

    groups: dict[str, dict[str, GroupSNR]]
    num_draws: int
    minibatch: bool
    false_alarm: float

    @property
    def drowned(self) -> list[tuple[str, str]]:
        """(objective, group) where E g is not zero, but one draw is mostly noise.

        The SNR is below 0.1, by two standard errors, and below a tenth of another group's, or of
        another objective's in this group.
        """
        return [
            (objective, group)
            for objective, found in self.groups.items()
            for group, value in found.items()
            if value.p_value < self._level
            and value.snr + 2 * value.se
            < min(LOW, self._best(objective, group) / BETTER)
        ]

    @property
    def all_noise(self) -> bool:
        """Whether no gradient differs from zero."""
        values = [value for found in self.groups.values() for value in found.values()]
        return all(value.p_value >= self._level for value in values)

    @property
    def _level(self) -> float:
        """The level of a single test (Bonferroni)."""
        return self.false_alarm / max(
            sum(len(found) for found in self.groups.values()), 1
        )

    def _best(self, objective: str, group: str) -> float:
        """The largest SNR of the objective's other groups, and of other objectives here."""
        ratios = [v.snr for name, v in self.groups[objective].items() if name != group]
        ratios += [
            found[group].snr
            for name, found in self.groups.items()
            if name != objective and group in found
        ]
        return max(ratios, default=0.0)

    @property
    def finding(self) -> Finding:
        """WARNING if noise drowns a group's gradient; NOTE if all gradients are noise; else OK."""
        return gradient_snr_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row an objective and group: the fields of ``GroupSNR``."""
        found = [
            {"objective": objective, "group": group, **value._asdict()}
            for objective, groups in self.groups.items()
            for group, value in groups.items()
        ]
        names = ("objective", "group", *GroupSNR._fields)
        return frame_of({name: [row[name] for row in found] for name in names})


def gradient_snr(
    lvm: torch.nn.Module | Prepared,
    data: Any = None,
    objectives: Mapping[str, Any] | None = None,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    num_draws: int = 120,
    batch_size: int = 100,
    minibatch: bool = False,
    false_alarm: float = 0.01,
    seed: int = 0,
) -> GradientSNR:
    """The signal-to-noise ratio of gradients at the current parameters, by objective and group.

    The model runs in evaluation mode (without dropout, whose noise does not count). It and its
    gradients are not changed. Memory is needed for 2 × 12 copies of its parameters.

    Arguments:
        lvm: the model and guide; or a ``Prepared``, which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row; a transform
            is drawn once.
        objectives: objectives of ``fit`` by name; ``{"ELBO": Trace_ELBO()}`` by default.
        groups: prefixes of parameters' names, by name of the group; by default each top-level
            submodule or parameter is a group.
        num_draws: gradients drawn for each objective, at least 24.
        batch_size: data per gradient; all data if they cannot be cut or share a latent.
        minibatch: whether every draw has a batch of its own, so that sampling noise of the data
            counts; otherwise all draws use one batch.
        false_alarm: rate of the tests that E g = 0, over all groups and objectives (Bonferroni).
        seed: seed of batches and draws; torch's generators are not changed.

    Returns:
        GradientSNR, by objective and group.

    Raises:
        ValueError: an option out of range, or a group without a parameter.
        ContractError: no objective gives a gradient to any parameter.

    Reference: Tighter Variational Bounds are Not Necessarily Better, Rainforth, Kosiorek, Le,
    Maddison, Igl, Wood and Teh, 2018.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.gradient_snr import gradient_snr
        >>> found = gradient_snr(PPCA(data_dim=4, latent_dim=1), torch.randn(50, 4), num_draws=24)
        >>> sorted(found.groups["ELBO"])
        ['V', 'W', 'b', 'log_s', 'log_sigma']
    """
    false_alarm = check_probability("gradient_snr: false_alarm", false_alarm)
    num_draws = check_number("gradient_snr: num_draws", num_draws, 2 * BLOCKS)
    batch_size = check_number("gradient_snr: batch_size", batch_size)
    pair, fixed, seed = pair_and_data("gradient_snr", lvm, data, seed=seed)
    lvm = _module(pair)
    if objectives is None:
        objectives = {"ELBO": Trace_ELBO()}
    found = {}
    for name, objective in objectives.items():
        with seeded(seed, fixed.device), evaluation_mode(lvm), _kept_gradients(lvm):
            draw_batch = _batches(lvm, fixed, batch_size, minibatch)
            named = {n: p for n, p in lvm.named_parameters() if p.requires_grad}
            members = _members(named, groups)
            sums = GradientSums(num_draws)
            for draw in range(num_draws):
                sums.add(draw, _gradients(lvm, objective, draw_batch(), named))
        found[name] = _summaries(sums, members)
    if not any(found.values()):
        raise ContractError(
            "gradient_snr: no objective gives a gradient to any parameter of "
            f"{type(lvm).__name__}."
        )
    return GradientSNR(found, num_draws, minibatch, false_alarm)


def _module(lvm: object) -> torch.nn.Module:
    if not isinstance(lvm, torch.nn.Module):
        raise ContractError(
            f"gradient_snr: {type(lvm).__name__} is not a torch.nn.Module, so it has no "
            "parameters; wrap it as vilvm.Pair."
        )
    return lvm


def _batches(
    lvm: Any, data: Data, batch_size: int, minibatch: bool
) -> Callable[[], Any]:
    """A function that returns the batch of the next draw."""
    is_whole = not data.divisible or batch_size >= len(data)
    first = data
    if not is_whole:
        first = data.subset(slice(0, batch_size))
    layout = find_layout(lvm, first.x)
    if is_whole or not (layout.local or layout.scale != 1.0):
        return lambda: data.x

    def random_batch() -> Any:
        return data.subset(torch.randperm(len(data))[:batch_size]).x

    picked = random_batch()
    if minibatch:
        return random_batch
    return lambda: picked


def _members(
    named: Mapping[str, Any], groups: Mapping[str, Sequence[str]] | None
) -> dict[str, list[str]]:
    """The names of the parameters of each group."""
    members: dict[str, list[str]] = {}
    if groups is None:
        for name in named:
            members.setdefault(_top(name), []).append(name)
        return members
    for group, prefixes in groups.items():
        members[group] = [
            n for n in named if any(n == p or n.startswith(f"{p}.") for p in prefixes)
        ]
        if not members[group]:
            raise ValueError(
                f"gradient_snr: group {group!r} holds no parameter that begins with "
                f"{list(prefixes)}; there are {list(named)}."
            )
    return members


def _top(name: str) -> str:
    """The top-level submodule or parameter, without the prefixes that ``Pair`` adds."""
    parts = name.split(".")
    if parts[0] == "owners" and len(parts) > 2:
        return parts[2]
    if parts[0] in ("pyro_params", "pyro_modules") and len(parts) > 1:
        return parts[1]
    return parts[0]


@contextmanager
def _kept_gradients(lvm: torch.nn.Module) -> Iterator[None]:
    """Restores the gradients of a model."""
    before = [(p, p.grad) for p in lvm.parameters()]
    try:
        yield
    finally:
        lvm.zero_grad(set_to_none=True)
        for p, grad in before:
            p.grad = grad


def _gradients(
    lvm: Any, objective: Any, batch: Any, named: Mapping[str, Any]
) -> dict[str, Tensor]:
    """One draw of the gradient, by parameter that has one."""
    for p in named.values():
        p.grad = None
    with module_parameters(lvm), torch.enable_grad():
        backward(lvm, objective, batch, list(named.values()))
    return {n: p.grad.detach() for n, p in named.items() if p.grad is not None}


def _summaries(
    sums: GradientSums, members: Mapping[str, Sequence[str]]
) -> dict[str, GroupSNR]:
    """The ratios of the groups that have a gradient."""
    found = {}
    for group, names in members.items():
        value = _summary(sums, [n for n in names if n in sums.total])
        if value is not None:
            found[group] = value
    return found


def _summary(sums: GradientSums, names: Sequence[str]) -> GroupSNR | None:
    """The ratios of a group; None if it has no gradient, or a gradient of zero in every draw."""
    n = int(sums.sizes.sum())
    full = ratios(sums, names, None)
    if not names or full.signal == full.noise == 0:
        return None
    se = 0.0
    if full.noise > 0:
        without = torch.tensor(
            [ratios(sums, names, b).snr(n - int(sums.sizes[b])) for b in range(BLOCKS)],
            dtype=torch.float64,
        )
        jackknife = (BLOCKS - 1) / BLOCKS * (without - without.mean()).square().sum()
        se = math.sqrt(jackknife)
    return GroupSNR(
        snr=full.snr(n),
        se=se,
        elementwise=full.elementwise(n),
        p_value=sign_flips(sums, names),
        num_parameters=sum(sums.total[name].shape[1] for name in names),
    )
