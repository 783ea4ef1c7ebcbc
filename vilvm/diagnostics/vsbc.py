"""Calibration by refitting, for a guide that is fitted to one data set: variational
simulation-based calibration (VSBC).

A guide that does not look at its batch is right for one data set at most, so ``sbc`` has nothing
to run. Instead a data set is simulated from the prior, θ* ~ p(θ), y ~ p(y | θ*), a fresh pair is
fitted to it, and θ* is ranked among draws of the fitted guide; so L times. Two questions are asked
of the ranks of each component. Are they symmetric? If not, the marginal is beside the truth, its
mean included. Are they uniform? If not, it is also of the wrong width; a mean-field guide often
is, and may still have the right means. A fit that is stopped too early shows in either.

Reference: Yes, but did it work?: Evaluating variational inference, Yao, Vehtari, Simpson and
Gelman, 2018.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_seed
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import seeded
from vilvm.data.tensors import tensors_of
from vilvm.diagnostics._components import components, names_of, truth, visible
from vilvm.diagnostics._uniformity import (
    Coverage,
    holm,
    interval_coverage,
    rank_among,
    symmetry_p_values,
    uniformity_p_values,
)
from vilvm.diagnostics.calibration import check_options, judge
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode
from vilvm.training import fit
from vilvm.weights import Simulation, find_layout, posterior
from vilvm.weights.simulation import Rebuild, batches, simulating

__all__ = ["VSBC", "vsbc"]


@dataclass(frozen=True)
class VSBC:
    """Variational simulation-based calibration: the ranks of the truth among draws of guides, each
    fitted to its own data.

    Arguments:
        ranks: whole numbers from 0 to num_draws, shape (L, K).
        num_draws: S, draws of each fitted guide.
        names: of the K components of the latents, such as "z[3]".
        symmetry: p-values of the exact test that ranks are symmetric, shape (K,), not adjusted for
            their number.
        uniformity: p-values of the exact ECDF test that ranks are uniform, shape (K,), not
            adjusted.
        false_alarm: the probability that the posterior itself is found fault with, over the 2 K
            tests.
    """

    ranks: Tensor
    num_draws: int
    names: tuple[str, ...]
    symmetry: Tensor
    uniformity: Tensor
    false_alarm: float

    @property
    def adjusted(self) -> Tensor:
        """The p-values of symmetry and of uniformity, shape (2, K), adjusted for their number
        (Holm).
        """
        return holm(torch.cat([self.symmetry, self.uniformity])).reshape(2, -1)

    @property
    def coverage(self) -> Coverage:
        """How often the central 50, 80, 90 and 95 % intervals hold the truth, by component."""
        return interval_coverage(self.ranks, self.num_draws)

    @property
    def finding(self) -> Finding:
        """OK if nothing departs; else by the worst component that does, as ``SBC.finding``."""
        symmetry, least = self.adjusted[0], self.adjusted.amin(0)
        found = judge(
            "Calibration by refitting",
            self.ranks,
            self.num_draws,
            self.names,
            least,
            self.false_alarm,
            tests=2,
        )
        if found.severity == Severity.OK:
            return found
        beside = [
            n for n, p in zip(self.names, symmetry.tolist(), strict=True) if p < self.false_alarm
        ]
        said = (
            f"Beside the truth, and not only too narrow or wide: {', '.join(beside[:5])}."
            if beside
            else "None lies beside the truth."
        )
        return Finding(
            found.name, found.severity, f"{found.verdict} {said}", found.source, found.advice
        )


def vsbc(
    build: Callable[[], LatentVariableModel],
    like: Any,
    num_simulations: int = 100,
    num_draws: int = 99,
    *,
    fit_options: Mapping[str, Any],
    rebuild: Rebuild | None = None,
    false_alarm: float = 0.01,
    seed: int = 0,
    progress: bool | None = None,
) -> VSBC:
    """Simulates data sets, fits a fresh pair to each, and asks whether the truth ranks among the
    guide's draws as it should.

    Of latents in the data plate beside shared ones, those of the first ten data are ranked; if all
    stand in it, those of the first datum, so that ranks are independent.

    Arguments:
        build: makes a fresh pair, whose model has the same, fixed parameters each time: those that
            are trained belong to the guide. A part that the pairs share keeps its buffers.
        like: a batch; each data set is of its size, with what the model reads of it.
        num_simulations: L, fits. Coverage is known to 0.5 / √L or better.
        num_draws: S, draws of each fitted guide.
        fit_options: of ``vilvm.fit``, such as {"steps": 2000}: those of the fit in doubt.
        rebuild: makes a batch of draws {site: value} of the model; by default, drawn data take the
            place of those in `like`.
        false_alarm: the probability that the posterior itself is found fault with, over all
            components together.
        seed: of all draws, of `build`, and of the fits.
        progress: whether to show a progress bar; by default on a terminal only.

    Returns:
        VSBC, with ranks of shape (num_simulations, K).

    Raises:
        ContractError: a pair breaks the contract, or its guide has no spread.
        ValueError: an option is out of range, or a batch cannot be made of draws.

    Reference: Yes, but did it work?: Evaluating variational inference, Yao, Vehtari, Simpson and
    Gelman, 2018.

    Example:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from vilvm.diagnostics.vsbc import vsbc
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> found = vsbc(lambda: vilvm.Pair(model, AutoNormal(model)), torch.zeros(5), 3, 9, fit_options={"steps": 2})
        >>> found.names, found.ranks.shape
        (('m',), torch.Size([3, 1]))
    """
    seed = check_seed("vsbc: seed", seed)
    num_simulations, num_draws, false_alarm = check_options(
        "vsbc", num_simulations, num_draws, false_alarm, rebuild
    )
    if isinstance(build, torch.nn.Module) or not callable(build):
        raise ValueError(
            "vsbc: build must be a function that makes a fresh pair each time; got a "
            f"{type(build).__name__}."
        )
    with seeded(seed):
        # of the building, the simulation, the fit and the draws
        seeds = torch.randint(2**31, (num_simulations, 4)).tolist()
    ranks, names = [], ()
    with ProgressBar("refitting", num_simulations, show=progress) as bar:
        for four in seeds:
            row, names = _one_fit(build, like, num_draws, fit_options, rebuild, four)
            ranks.append(row)
            bar.advance()
    joined = torch.stack(ranks)
    tests = (symmetry_p_values(joined, num_draws), uniformity_p_values(joined, num_draws))
    return VSBC(joined, num_draws, names, *tests, false_alarm)


def _one_fit(
    build: Callable[[], Any],
    like: Any,
    num_draws: int,
    options: Mapping[str, Any],
    rebuild: Rebuild | None,
    seeds: list[int],
) -> tuple[Tensor, tuple[str, ...]]:
    """The ranks of one simulation, shape (K,), and the components' names."""
    with seeded(seeds[0]):
        lvm = build()
    with _kept(lvm):
        with simulating(lvm, like, seeds[1]) as fixed:
            batch, sites = next(batches(lvm, 1, like=fixed, rebuild=rebuild))
        fit(lvm, batch, **{"seed": seeds[2], "progress": False, **options})
        with seeded(seeds[3], tensors_of(batch)[0].device), evaluation_mode(lvm):
            layout = find_layout(lvm, batch)
            if layout.degenerate:
                raise ContractError(
                    f"vsbc: the guide of {type(lvm).__name__} puts latent "
                    f"{layout.degenerate[0]!r} on one point, so it has no spread to calibrate; "
                    "give it a guide with a density."
                )
            draws = posterior(lvm, batch, num_draws)
            made = Simulation(batch, {n: sites[n] for n in layout.latents}, layout)
            row = rank_among(truth(made), components({n: draws[n] for n in made.latents}, layout))[
                0
            ].cpu()
            seen = visible(lvm, made)
            kept = torch.ones(len(row), dtype=torch.bool) if seen is None else seen[0].cpu()
    return row[kept], tuple(
        n for n, k in zip(names_of(made.latents, layout), kept.tolist(), strict=True) if k
    )


@contextmanager
def _kept(lvm: Any) -> Iterator[None]:
    """A context after which the buffers of a pair are as they were, and its parts in their modes:
    pairs may share a part of the model.
    """
    before = (
        {n: b.clone() for n, b in lvm.named_buffers()} if isinstance(lvm, torch.nn.Module) else {}
    )
    modes = [(m, m.training) for m in lvm.modules()] if isinstance(lvm, torch.nn.Module) else []
    try:
        yield
    finally:
        for name, buffer in before.items():
            lvm.get_buffer(name).copy_(buffer)
        for part, training in modes:
            part.training = training
