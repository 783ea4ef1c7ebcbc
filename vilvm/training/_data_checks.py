"""Checks of a pair on the data of a run, made before its first step."""

from contextlib import suppress
from functools import partial
from typing import Any

import torch

from vilvm._runtime.random import seeded
from vilvm.data._remarks import remarks_on
from vilvm.data.data import Data
from vilvm.data.tensors import structure_of
from vilvm.lvm import ContractError, evaluation_mode, module_parameters
from vilvm.training._batches import Batches
from vilvm.training._layouts import Layouts, explain_small_batch
from vilvm.training._run import RunSpec
from vilvm.training._validation import check_rows, check_validation
from vilvm.training.step import check_objective, nest
from vilvm.weights import Layout, find_layout
from vilvm.weights._per_datum import (
    INSTEAD,
    ByPosition,
    by_position,
    remember,
    restart,
    unset_autoguides,
)
from vilvm.weights._vectorisation import VECTORISED, strategy_of
from vilvm.weights.checks import check_full_size
from vilvm.weights.log_weights import log_weights_pass

__all__ = ["DataChecks"]


class DataChecks:
    """Runs a pair on each source of data, and raises an error if it would be trained wrongly.

    Arguments:
        spec: of the run.
        layouts: receives the layouts that are found.
    """

    def __init__(self, spec: RunSpec, layouts: Layouts):
        self.spec = spec
        self.lvm = spec.lvm
        self.layouts = layouts
        self._owned: set[str] = set()  # parameters per datum

    def check_source(self, batches: Batches) -> list[tuple[Any, str, Any]]:
        """Raises ContractError unless the objective can train the pair on batches of this source.

        Returns:
            What was changed in the objective: object, attribute and old value.
        """
        spec = self.spec
        ranks = self.spec.ranks
        data = batches.data
        for remark in remarks_on(data):
            spec.log(f"fit: {remark}")
        batch = batches(0)
        self._check_single_data(batches, batch)
        layout = self.layouts.of(batch)
        check_objective(spec.objective, layout.enumerated)
        if data.divisible:
            check_full_size("fit", layout, len(data), len(spec.batches.data))
        vectorises = partial(self._vectorises, batch, layout)
        changed = nest(spec.objective, layout.nesting, vectorises)
        if ranks.size > 1 and not data.divisible:
            raise ContractError(
                "fit: these data cannot be divided among ranks (their tensors share no first "
                "dimension); train them in one process."
            )
        if not batches.whole or spec.parallel:
            self._check_divided(batches, layout, len(Data(batch)))
        if batches.leaves_out:
            spec.log(
                "fit: the last batch of an epoch would hold one datum, for which batch "
                "normalisation has no statistics; it is left out, another one every epoch "
                f"({len(data)} data in batches of {batches.size})."
            )
        return changed

    def check_validation(self) -> Layout:
        """The layout of the validation data: that of training data of the same structure, if any.

        Raises:
            ContractError: the pair cannot run on these data.
        """
        spec = self.spec
        data = self.spec.validation
        layout = self.layouts.known()[0]
        if data is None:
            return layout
        if len(spec.batches.sources) > 1:
            of_kind = self.layouts.of_kind(structure_of(data.x))
            layout = of_kind[-1] if of_kind else self._layout_of_first(data)
        with seeded(spec.seed, spec.device):
            check_validation(self.lvm, data, layout)
        return layout

    def _layout_of_first(self, data: Data) -> Layout:
        """The layout of the first batch of some data."""
        if data.divisible:
            data = data.subset(slice(0, self.spec.batches.size))
        return find_layout(self.lvm, data.loaded().x)

    # Parameters of single data
    # ------------------------------------------------------------------------------------

    def _check_single_data(self, batches: Batches, batch: Any) -> None:
        """Raises ContractError if the guide's parameters per datum would serve other data.

        Such parameters belong to data by their position in the batch, so the guide must always
        receive all data. The data that it receives are remembered.
        """
        whole = batches.whole and not self.spec.parallel
        unset = unset_autoguides(self.lvm)
        try:
            found = by_position(self.lvm, batch, self._found_layout(batch))
        except ContractError:
            restart(unset)
            found = None if whole else self._by_position_of_all(batches.data)
            if found is None:
                raise
        if found is None or (whole and not found.single):
            return
        what = _what_moves_data(batches, whole)
        if not whole or found.name in self._owned:
            restart(unset)
            raise ContractError(
                f"fit: the guide's parameter {found.name!r} serves data by their position in the "
                f"batch, and {what} put other data there: {INSTEAD}."
            )
        self._own(found.name, batches.data, batch)

    def _own(self, name: str, data: Data, batch: Any) -> None:
        """Remembers the data that a parameter of single data belongs to."""
        self._owned.add(name)
        # A fresh transform makes new data every time, which cannot be recognised.
        if data.transform is None or data.transformed:
            remember(self.lvm, name, batch)

    def _found_layout(self, batch: Any) -> Layout:
        try:
            return self.layouts.find(batch)
        except ContractError as error:
            raise explain_small_batch(error, 0, self.spec.batches) from None

    def _by_position_of_all(self, data: Data) -> ByPosition | None:
        """The result of ``by_position`` on all data, for a guide that cannot run on part of them.

        None if the guide cannot run on all data either.
        """
        with suppress(ContractError), seeded(self.spec.seed, self.spec.device):
            every = data.loaded().model_input()
            return by_position(
                self.lvm, every, find_layout(self.lvm, every, validate=False)
            )
        return None

    # The axis of the data
    # ------------------------------------------------------------------------------------

    def _check_divided(
        self,
        batches: Batches,
        layout: Layout,
        rows: int,
    ) -> None:
        """Raises ContractError unless the data can be divided into batches or among ranks."""
        num_data = len(batches.data)
        if not layout.local and layout.scale == 1.0:
            part = f"each batch of {batches.size}"
            instead = "leave batch_size out"
            if batches.whole:
                part = f"the share of each of {self.spec.ranks.size} ranks"
                instead = "train it in one process"
            raise ContractError(
                f"{type(self.lvm).__name__} has latents that its data share, or no plate over its "
                f"data, and would take {part} for all {num_data}: {instead}, or give the plate "
                f"its full size, pyro.plate(..., {num_data}, subsample=batch)."
            )
        self._check_axis(batches.data, layout, rows)

    def _check_axis(self, data: Data, layout: Layout, rows: int) -> None:
        """Raises ContractError unless the plate over the data is along the axis of the batches.

        Another plate may have the size of the batch by chance, so the pair also runs on another
        number of data.
        """
        check_rows(self.lvm, layout, rows)
        other = rows - 1 if rows > 1 else 2
        if other > len(data):
            return
        found = None
        # A pair that takes batches of one size only, such as an autoguide, is not refused.
        with (
            seeded(self.spec.seed, self.spec.device),
            module_parameters(self.lvm, frozen=True),
            suppress(ContractError),
        ):
            fewer = data.subset(slice(0, other)).model_input()
            plate = layout.data_plate
            found = find_layout(self.lvm, fewer, validate=False, plate=plate)
        if found is not None:
            check_rows(self.lvm, found, other)

    def _vectorises(self, batch: Any, layout: Layout) -> bool:
        """Whether several samples of the pair can be drawn in one vectorised pass."""
        with (
            torch.no_grad(),
            seeded(self.spec.seed, self.spec.device),
            module_parameters(self.lvm),
            evaluation_mode(self.lvm),
        ):
            passes = log_weights_pass(self.lvm, layout)
            strategy = strategy_of(
                self.lvm, batch, passes, layout.vectorisation, self.spec.log
            )
        return strategy == VECTORISED


def _what_moves_data(batches: Batches, whole: bool) -> str:
    """What puts other data at a position of the batch, for an error message."""
    return "several sources of data" if whole else f"batches of {batches.size}"
