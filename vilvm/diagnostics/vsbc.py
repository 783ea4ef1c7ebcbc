"""Calibration by refitting, for a guide that is fitted to one data set: variational
simulation-based calibration (VSBC).

A guide that does not read its batch is right for one data set at most, so ``sbc`` does not apply.
Instead, L times, a data set is simulated from the prior, θ* ~ p(θ), y ~ p(y | θ*), a fresh pair is
fitted to it, and θ* is ranked among draws of the fitted guide. Two tests are made on the ranks of
each component. If the ranks are not symmetric, the marginal is shifted, its mean included. If they
are not uniform, it may also have the wrong width; a mean-field guide often does, and may
still have the right means. A fit that stops too early shows in either test.

Reference: Yes, but did it work?: Evaluating variational inference, Yao, Vehtari, Simpson and
Gelman, 2018.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_seed
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import seeded
from vilvm._runtime.results import Result, frame_of
from vilvm.data.tensors import tensors_of
from vilvm.diagnostics._amortised import check_spread
from vilvm.diagnostics._calibration import check_options
from vilvm.diagnostics._components import components, names_of, truth, visible
from vilvm.diagnostics._uniformity import (
    Coverage,
    holm,
    interval_coverage,
    rank_among,
    symmetry_p_values,
    uniformity_p_values,
)
from vilvm.diagnostics._verdicts.calibration import vsbc_finding
from vilvm.diagnostics.finding import Finding
from vilvm.lvm import LatentVariableModel, evaluation_mode
from vilvm.training import fit
from vilvm.weights import Simulation, find_layout
from vilvm.weights.guide_draws import latent_draws
from vilvm.weights.simulation import Rebuild, batches, simulating

__all__ = ["VSBC", "vsbc"]


@dataclass(frozen=True, repr=False)
class VSBC(Result):
    """The ranks of the truth among draws of guides, each fitted to its own simulated data.

    Arguments:
        ranks: whole numbers from 0 to num_draws, shape (L, K).
        num_draws: S, the number of draws of each fitted guide.
        names: names of the K components of the latents, such as "z[3]".
        symmetry: p-values of the exact test that ranks are symmetric, shape (K,), not adjusted for
            their number.
        uniformity: p-values of the exact ECDF test that ranks are uniform, shape (K,), not
            adjusted.
        false_alarm: probability that the exact posterior is rejected, over the 2 K tests.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.vsbc import VSBC
        >>> ranks = torch.arange(100)[:, None] % 10
        >>> VSBC(ranks, 9, ("z",), torch.ones(1), torch.ones(1), 0.01).finding.severity.name
        'OK'
    """

    ranks: Tensor
    num_draws: int
    names: tuple[str, ...]
    symmetry: Tensor
    uniformity: Tensor
    false_alarm: float

    @property
    def adjusted(self) -> Tensor:
        """p-values of symmetry and of uniformity, adjusted for their number (Holm), (2, K)."""
        return holm(torch.cat([self.symmetry, self.uniformity])).reshape(2, -1)

    @property
    def coverage(self) -> Coverage:
        """How often the central 50, 80, 90 and 95 % intervals contain the truth, by component."""
        return interval_coverage(self.ranks, self.num_draws)

    @property
    def finding(self) -> Finding:
        """OK if no component departs; else the severity of the worst, as in ``SBC.finding``."""
        return vsbc_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a component.

        Columns: name; the p-values symmetry and uniformity, and each adjusted for their number
        (Holm); the shares of simulations whose central intervals contain the truth, coverage_50,
        …, coverage_95.
        """
        symmetry, uniformity = self.adjusted
        columns = {
            "name": self.names,
            "symmetry": self.symmetry,
            "symmetry_adjusted": symmetry,
            "uniformity": self.uniformity,
            "uniformity_adjusted": uniformity,
        }
        return frame_of({**columns, **self.coverage.columns()})


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
    progress: bool = True,
) -> VSBC:
    """Simulates data sets, fits a fresh pair to each, and ranks the truth among its draws.

    If the data share a latent, latents of single data are ranked for the first ten data. If not,
    those of the first datum are ranked, so that ranks are independent.

    Arguments:
        build: makes a fresh pair, whose model has the same, fixed parameters each time; the
            trained parameters belong to the guide. A part that the pairs share keeps its buffers.
        like: a batch; each simulated data set has its size.
        num_simulations: L, the number of data sets and fits.
        num_draws: S, the number of draws of each fitted guide.
        fit_options: options of ``vilvm.fit`` in the fit to check, such as {"steps": 2000}.
        rebuild: makes a batch from draws {site: value} of the model; by default, simulated data
            replace those in `like`.
        false_alarm: probability that the exact posterior is rejected, over all components.
        seed: seed of all draws, of `build`, and of the fits.
        progress: whether to show a progress bar.

    Returns:
        VSBC, with ranks of shape (num_simulations, K).

    Raises:
        ContractError: a pair breaks the contract, or its guide has no spread.
        ValueError: an option is out of range, or a batch cannot be made of draws.

    Reference: Yes, but did it work?: Evaluating variational inference, Yao, Vehtari, Simpson and
    Gelman, 2018.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from vilvm.diagnostics.vsbc import vsbc
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> build = lambda: vilvm.Pair(model, AutoNormal(model))
        >>> found = vsbc(build, torch.zeros(5), 3, 9, fit_options={"steps": 2})
        >>> found.names, found.ranks.shape
        (('m',), torch.Size([3, 1]))
    """
    seed = check_seed("vsbc: seed", seed)
    options = check_options("vsbc", num_simulations, num_draws, false_alarm, rebuild)
    if isinstance(build, torch.nn.Module) or not callable(build):
        raise ValueError(
            "vsbc: build must be a function that makes a fresh pair each time; got a "
            f"{type(build).__name__}."
        )
    with seeded(seed):
        seeds = torch.randint(2**31, (options.num_simulations, 4)).tolist()
    refit = _Refit(build, like, options.num_draws, fit_options, rebuild)
    ranks, names = [], ()
    with ProgressBar("refitting", options.num_simulations, show=progress) as bar:
        for four in seeds:
            row, names = refit(*four)
            ranks.append(row)
            bar.advance()
    joined = torch.stack(ranks)
    return VSBC(
        joined,
        options.num_draws,
        names,
        symmetry_p_values(joined, options.num_draws),
        uniformity_p_values(joined, options.num_draws),
        options.false_alarm,
    )


class _Refit(NamedTuple):
    """Simulates a data set, fits a fresh pair to it, and ranks the truth; fields as ``vsbc``."""

    build: Callable[[], Any]
    like: Any
    num_draws: int
    fit_options: Mapping[str, Any]
    rebuild: Rebuild | None

    def __call__(
        self, build_seed: int, data_seed: int, fit_seed: int, draw_seed: int
    ) -> tuple[Tensor, tuple[str, ...]]:
        """The ranks of one simulation, shape (K,), and the components' names."""
        with seeded(build_seed):
            lvm = self.build()
        with _kept(lvm):
            with simulating(lvm, self.like, data_seed) as fixed:
                batch, sites = next(batches(lvm, 1, like=fixed, rebuild=self.rebuild))
            fit(lvm, batch, **{"seed": fit_seed, "progress": False, **self.fit_options})
            with seeded(draw_seed, tensors_of(batch)[0].device), evaluation_mode(lvm):
                return self._ranks(lvm, batch, sites)

    def _ranks(
        self, lvm: Any, batch: Any, sites: Mapping[str, Tensor]
    ) -> tuple[Tensor, tuple[str, ...]]:
        layout = find_layout(lvm, batch)
        check_spread("vsbc", lvm, layout)
        draws = latent_draws(lvm, batch, self.num_draws)
        simulation = Simulation(batch, {n: sites[n] for n in layout.latents}, layout)
        drawn = components({n: draws[n] for n in simulation.latents}, layout)
        row = rank_among(truth(simulation), drawn)[0].cpu()
        names = names_of(simulation.latents, layout)
        shown = visible(lvm, simulation)
        if shown is None:
            return row, names
        kept = shown[0].cpu()
        return row[kept], tuple(
            n for n, k in zip(names, kept.tolist(), strict=True) if k
        )


@contextmanager
def _kept(lvm: Any) -> Iterator[None]:
    """Restores the buffers of a pair and the modes of its parts, which other pairs may share."""
    if not isinstance(lvm, torch.nn.Module):
        yield
        return
    before = {n: b.clone() for n, b in lvm.named_buffers()}
    modes = [(m, m.training) for m in lvm.modules()]
    try:
        yield
    finally:
        for name, buffer in before.items():
            lvm.get_buffer(name).copy_(buffer)
        for part, training in modes:
            part.training = training
