"""Signal and noise of a gradient, by estimator and by group of parameters.

An estimator's gradient g of a group of parameters has, over its draws,

    SNR = ‖E g‖ / √tr Var g,     elementwise SNR = √mean_p (E g_p)² / Var g_p,

and it takes about 1/SNR² draws until the direction is seen through the noise. Of M draws with mean
ḡ and variances s², ‖ḡ‖² is too large by tr Var g / M, and 1/s² by a factor that for normal
gradients is (M − 1)/(M − 3), so that

    ‖E g‖² ≈ ‖ḡ‖² − Σ s²/M,      (E g_p)² / Var g_p ≈ ḡ_p²/s_p² · (M − 3)/(M − 1) − 1/M.

Whether E g differs from zero at all is tested by flipping signs: were it zero, and g symmetric,
the sum of the draws' twelve blocks would be as long with any signs before them.

A tighter bound can have a worse gradient: with K importance samples the SNR of the decoder's
gradient grows as √K, and that of the encoder's falls as 1/√K.

Reference: Tighter Variational Bounds are Not Necessarily Better, Rainforth, Kosiorek, Le,
Maddison, Igl, Wood and Teh, 2018.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability, check_seed
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.lvm import ContractError, evaluation_mode, fixed_beside, module_parameters
from vilvm.training.step import backward
from vilvm.weights import find_layout

__all__ = ["GradientSNR", "GroupSNR", "gradient_snr"]

_BLOCKS = 12  # of draws, for standard errors and the test: 2¹¹ patterns of signs
_LOW, _BETTER = 0.1, 10.0


class GroupSNR(NamedTuple):
    """The signal-to-noise ratio of one estimator's gradient in one group of parameters.

    Arguments:
        snr: ‖E g‖ / √tr Var g; infinite for a gradient without noise.
        se: its standard error, by the jackknife over blocks of draws.
        elementwise: root mean square of the parameters' own ratios, of those whose gradient
            varies.
        p_value: of E g = 0.
        num_parameters: in the group, those without a gradient left out.
    """

    snr: float
    se: float
    elementwise: float
    p_value: float
    num_parameters: int


@dataclass(frozen=True)
class GradientSNR:
    """What ``gradient_snr`` found.

    Arguments:
        groups: by objective, then by group of parameters.
        num_draws: gradients of each objective.
        minibatch: whether the draws differ in their data too.
        false_alarm: of the tests, all groups and objectives together.
    """

    groups: dict[str, dict[str, GroupSNR]]
    num_draws: int
    minibatch: bool
    false_alarm: float

    @property
    def drowned(self) -> list[tuple[str, str]]:
        """(objective, group) where there is a direction to go (E g is not zero), and next to
        nothing of it is seen in one draw.

        Its SNR is below 0.1, by two standard errors, and below a tenth of another group's, or of
        another objective's in this group.
        """
        tests = sum(len(found) for found in self.groups.values())
        return [
            (objective, group)
            for objective, found in self.groups.items()
            for group, value in found.items()
            if value.p_value < self.false_alarm / tests
            and value.snr + 2 * value.se < min(_LOW, self._best(objective, group) / _BETTER)
        ]

    def _best(self, objective: str, group: str) -> float:
        """The largest SNR of the objective's other groups, and of this group under other
        objectives.
        """
        beside = [v.snr for name, v in self.groups[objective].items() if name != group]
        return max(
            beside
            + [
                found[group].snr
                for name, found in self.groups.items()
                if name != objective and group in found
            ],
            default=0.0,
        )

    @property
    def finding(self) -> Finding:
        """WARNING if a group's gradient is drowned in noise while others are not; NOTE if all is
        noise; else OK.
        """
        lowest, where = min(
            (
                (v.snr, f"of {group!r} under {objective}")
                for objective, found in self.groups.items()
                for group, v in found.items()
            ),
            default=(math.nan, "of nothing"),
        )
        severity, advice = Severity.OK, ""
        verdict = f"The lowest signal-to-noise ratio is {lowest:.2g}, {where}."
        drowned = self.drowned
        tests = sum(len(found) for found in self.groups.values())
        if drowned:
            severity = Severity.WARNING
            told = ", ".join(
                f"{group!r} under {objective} (SNR {self.groups[objective][group].snr:.2g})"
                for objective, group in drowned
            )
            verdict = (
                f"The gradient is drowned in noise for {told}: a step there is next to random, "
                "though there is a way to go."
            )
            advice = (
                "Use fewer importance samples or a lower-variance estimator, more samples "
                "(num_particles) or larger batches."
            )
        elif all(
            v.p_value >= self.false_alarm / tests
            for found in self.groups.values()
            for v in found.values()
        ):
            severity = Severity.NOTE
            verdict += (
                f" No gradient differs from zero in {self.num_draws} draws: the parameters are at "
                "rest, or all is noise."
            )
            advice = "Ask vilvm.diagnostics.convergence which; more draws see more."
        source = (
            f"SNR after Rainforth et al. 2018; below {_LOW:g} and a tenth of the others', ours; "
            f"false-alarm rate {self.false_alarm:g}"
        )
        return Finding("Gradient signal-to-noise", severity, verdict, source, advice)


def gradient_snr(
    lvm: torch.nn.Module,
    data: Any,
    objectives: Mapping[str, Any] | None = None,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    num_draws: int = 120,
    batch_size: int = 100,
    minibatch: bool = False,
    false_alarm: float = 0.01,
    seed: int = 0,
) -> GradientSNR:
    """The signal-to-noise ratio of gradients at the parameters as they are, by objective and by
    group of parameters.

    The model runs in evaluation mode (without dropout, whose noise is not counted), and is left as
    it was, gradients included. Memory is for 2 × 12 copies of its parameters.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform
            is drawn once.
        objectives: what ``fit`` takes as an objective, by name; ``{"ELBO": Trace_ELBO()}`` by
            default.
        groups: prefixes of parameters' names, by name of the group; by default a group a top-level
            submodule or parameter.
        num_draws: gradients drawn of each objective, at least 24.
        batch_size: data a gradient; all of them if they cannot be cut, or share a latent.
        minibatch: whether every draw takes a batch of its own, so that the noise of the data
            counts; else one batch serves all.
        false_alarm: of the tests that E g = 0, all groups and objectives together (Bonferroni).
        seed: of batches and draws; torch's generators are left as they were.

    Returns:
        GradientSNR.

    Raises:
        ValueError: an option out of range, or a group without a parameter.
        ContractError: no objective gives a gradient to any parameter.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.gradient_snr import gradient_snr
        >>> found = gradient_snr(PPCA(data_dim=4, latent_dim=1), torch.randn(50, 4), num_draws=24)
        >>> sorted(found.groups["ELBO"])
        ['V', 'W', 'b', 'log_s', 'log_sigma']
    """
    seed = check_seed("gradient_snr: seed", seed)
    false_alarm = check_probability("gradient_snr: false_alarm", false_alarm)
    num_draws = check_number("gradient_snr: num_draws", num_draws, 2 * _BLOCKS)
    batch_size = check_number("gradient_snr: batch_size", batch_size)
    if not isinstance(lvm, torch.nn.Module):
        raise ContractError(
            f"gradient_snr: {type(lvm).__name__} is no torch.nn.Module, so it has no parameters; "
            "wrap it as vilvm.Pair."
        )
    objectives = {"ELBO": Trace_ELBO()} if objectives is None else objectives
    fixed, found = fixed_beside(lvm, data, seed), {}
    for name, objective in objectives.items():
        with seeded(seed, fixed.device), evaluation_mode(lvm), _kept_gradients(lvm):
            batches = _batches(lvm, fixed, batch_size, minibatch)
            named = {n: p for n, p in lvm.named_parameters() if p.requires_grad}
            members = _members(named, groups)
            sums = _Sums(num_draws)
            for draw in range(num_draws):
                sums.add(draw, _gradients(lvm, objective, batches(), named))
        found[name] = {
            group: value
            for group, names in members.items()
            if (value := _summary(sums, [n for n in names if n in sums.total]))
        }
    if not any(found.values()):
        raise ContractError(
            "gradient_snr: no objective gives a gradient to any parameter of "
            f"{type(lvm).__name__}."
        )
    return GradientSNR(found, num_draws, minibatch, false_alarm)


def _batches(lvm: Any, data: Data, batch_size: int, minibatch: bool) -> Callable[[], Any]:
    """What gives the batch of every draw."""
    whole = not data.divisible or batch_size >= len(data)
    layout = find_layout(lvm, data.x if whole else data.subset(slice(0, batch_size)).x)
    if whole or not (layout.local or layout.scale != 1.0):
        return lambda: data.x
    picked = data.subset(torch.randperm(len(data))[:batch_size]).x
    return (
        (lambda: data.subset(torch.randperm(len(data))[:batch_size]).x)
        if minibatch
        else (lambda: picked)
    )


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
    """The submodule, or the parameter itself, as its author knows it: not the part in which vilvm
    keeps it.
    """
    parts = name.split(".")
    if parts[0] == "owners" and len(parts) > 2:
        return parts[2]
    return parts[1] if parts[0] in ("pyro_params", "pyro_modules") and len(parts) > 1 else parts[0]


@contextmanager
def _kept_gradients(lvm: torch.nn.Module) -> Iterator[None]:
    """Puts the gradients of a model back as they were."""
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
    """One draw of the gradient, by parameter, without those that have none."""
    for p in named.values():
        p.grad = None
    with module_parameters(lvm), torch.enable_grad():
        backward(lvm, objective, batch, list(named.values()))
    return {n: p.grad.detach() for n, p in named.items() if p.grad is not None}


class _Sums:
    """Sums and squares of gradients by block of draws, about the first draw, so that rounding
    loses no digits of their variance.
    """

    def __init__(self, num_draws: int):
        self.sizes = torch.tensor([len(range(b, num_draws, _BLOCKS)) for b in range(_BLOCKS)])
        self.origin: dict[str, Tensor] = {}
        self.total: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def add(self, draw: int, gradients: Mapping[str, Tensor]) -> None:
        for name, g in gradients.items():
            if name not in self.total:
                self.origin[name] = g.flatten().clone()
                self.total[name], self.squares[name] = (
                    g.new_zeros(_BLOCKS, g.numel()) for _ in range(2)
                )
            centred = g.flatten() - self.origin[name]
            self.total[name][draw % _BLOCKS] += centred
            self.squares[name][draw % _BLOCKS] += centred.square()


class _Ratios(NamedTuple):
    """Sums over the parameters of a group: ‖ḡ‖², Σ s², and Σ ḡ²/s² over the `varying` ones."""

    signal: float
    noise: float
    ratios: float
    varying: int

    def snr(self, num_draws: int) -> float:
        signal = max(self.signal - self.noise / num_draws, 0.0)
        return math.sqrt(signal / self.noise) if self.noise > 0 else math.inf

    def elementwise(self, num_draws: int) -> float:
        if not self.varying:
            return math.inf
        return math.sqrt(
            max(
                self.ratios / self.varying * (num_draws - 3) / (num_draws - 1) - 1 / num_draws, 0.0
            )
        )


def _summary(sums: _Sums, names: Sequence[str]) -> GroupSNR | None:
    """None if the group has no gradient, or one that is zero in every draw."""
    n = int(sums.sizes.sum())
    full = _ratios(sums, names, None)
    if not names or full.signal == full.noise == 0:
        return None
    without = torch.tensor(
        [_ratios(sums, names, b).snr(n - int(sums.sizes[b])) for b in range(_BLOCKS)],
        dtype=torch.float64,
    )
    jackknife = (_BLOCKS - 1) / _BLOCKS * (without - without.mean()).square().sum()
    return GroupSNR(
        snr=full.snr(n),
        se=math.sqrt(jackknife) if full.noise > 0 else 0.0,
        elementwise=full.elementwise(n),
        p_value=_sign_flips(sums, names),
        num_parameters=sum(sums.total[name].shape[1] for name in names),
    )


def _ratios(sums: _Sums, names: Sequence[str], left_out: int | None) -> _Ratios:
    kept = [b for b in range(_BLOCKS) if b != left_out]
    n = int(sums.sizes[kept].sum())
    parts = []
    for name in names:
        mean = sums.total[name][kept].sum(0).double() / n
        variance = (
            (sums.squares[name][kept].sum(0).double() / n - mean.square()).clamp(min=0)
            * n
            / (n - 1)
        )
        mean = mean + sums.origin[name]
        # What is left of a variance by rounding alone is none.
        variance = torch.where(
            variance > mean.square() * 1e-10, variance, torch.zeros_like(variance)
        )
        moving = variance > 0
        ratio = torch.where(
            moving,
            mean.square() / torch.where(moving, variance, torch.ones_like(variance)),
            torch.zeros_like(mean),
        )
        parts.append(
            (
                mean.square().sum().item(),
                variance.sum().item(),
                ratio.sum().item(),
                int(moving.sum()),
            )
        )
    signal, noise, ratios, varying = (
        (sum(column) for column in zip(*parts, strict=True)) if parts else (0.0, 0.0, 0.0, 0)
    )
    return _Ratios(signal, noise, ratios, int(varying))


def _sign_flips(sums: _Sums, names: Sequence[str]) -> float:
    """The share of sign patterns of the blocks under which their sum is as long as it is."""
    gram = torch.zeros(_BLOCKS, _BLOCKS, dtype=torch.float64)
    for name in names:
        blocks = (
            sums.total[name].double()
            + sums.sizes.to(sums.origin[name].device).unsqueeze(-1) * sums.origin[name].double()
        )
        gram += (blocks @ blocks.T).cpu()
    signs = torch.tensor(
        [(1, *rest) for rest in itertools.product((1, -1), repeat=_BLOCKS - 1)],
        dtype=torch.float64,
    )
    lengths = ((signs @ gram) * signs).sum(-1)
    # the first pattern is that of the data
    return (lengths >= lengths[0] * (1 - 1e-9)).double().mean().item()
