"""The columns that a model was trained on, which the data of every later call must have.

A model reads columns by their position, so a frame whose columns have another order gives numbers
that look right and are wrong. The same holds for the codes of categorical columns.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch.nn import Module

from vilvm.data._foreign import Converted
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of

__all__ = [
    "ColumnNames",
    "check_columns",
    "column_names",
    "few",
    "set_columns",
    "training_columns",
]

_KEPT = "_vilvm_columns"  # attribute of a model
_SHOWN = 6  # names in a message


class ColumnNames(NamedTuple):
    """The columns of some data, and the levels of those that are categorical.

    Arguments:
        columns: as in ``Data.columns``.
        levels: as in ``Data.levels``, as text.
    """

    columns: Any
    levels: dict[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """The names as plain data."""
        return {"columns": _listed(self.columns), "levels": _listed(self.levels)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> "ColumnNames | None":
        """The inverse of ``to_json``; None of None."""
        if value is None:
            return None
        return cls(_as_tuples(value["columns"]), _as_tuples(value["levels"]))


def _listed(names: Any) -> Any:
    if isinstance(names, Mapping):
        return {n: list(v) for n, v in names.items()}
    return names and list(names)


def _as_tuples(names: Any) -> Any:
    if isinstance(names, Mapping):
        return {n: tuple(v) for n, v in names.items()}
    return names and tuple(names)


def training_columns(lvm: Any) -> ColumnNames | None:
    """The columns of the named data that a model was trained on.

    ``frame[list(training_columns(lvm).columns)]`` has them in the order that the model needs.

    Arguments:
        lvm: a model, trained or loaded.

    Returns:
        Their names and levels; None if the data had no names.

    Examples:
        >>> import pandas, torch, vilvm
        >>> from vilvm.data import training_columns
        >>> from vilvm.models.ppca import PPCA
        >>> lvm, frame = PPCA(2, 1), pandas.DataFrame({"a": [0.0, 1.0], "b": [1.0, 3.0]})
        >>> fitted = vilvm.fit(lvm, frame, epochs=1, progress=False)
        >>> training_columns(lvm).columns
        ('a', 'b')
    """
    return next((n for part in _attributes(lvm) if (n := part.get(_KEPT))), None)


def column_names(data: Data) -> ColumnNames | None:
    """The names of some data; None if they have none."""
    if not (data.columns or data.levels):
        return None
    return ColumnNames(
        data.columns, {n: tuple(map(str, v)) for n, v in data.levels.items()}
    )


def set_columns(lvm: Any, names: ColumnNames | None) -> None:
    """Keeps the names of the training data with a model, and with the models that it wraps.

    None removes those that they have.
    """
    for kept in _attributes(lvm):
        kept.pop(_KEPT, None)
        if names is not None:
            kept[_KEPT] = names


def check_columns(data: Data | Converted, names: ColumnNames | None, what: str) -> None:
    """Raises ValueError if columns or levels of the data differ from those of the training data.

    Arguments:
        data: of a later call.
        names: of the training data; None if they had none.
        what: the name of the argument, for messages.
    """
    if names is None:
        return
    _check_levels(data, names, what)
    for place, found, wanted in _paired(data.columns, names.columns):
        if tuple(found) != tuple(wanted):
            raise _differ(place, tuple(found), tuple(wanted), what)
    if data.columns is None and isinstance(names.columns, tuple):
        _check_width(data, names.columns, what)


def _check_levels(data: Data | Converted, names: ColumnNames, what: str) -> None:
    for name in names.levels.keys() & data.levels.keys():
        found = tuple(map(str, data.levels[name]))
        if found != names.levels[name]:
            raise ValueError(
                f"{what}: column {name!r} has the levels {few(found)}, and in the training data "
                f"{few(names.levels[name])}, so that their codes differ; give it those levels "
                "(pandas: .cat.set_categories, polars: .cast(pl.Enum(...)))."
            )


def _attributes(lvm: Any) -> Iterator[dict[str, Any]]:
    """The attributes of a model, then of the models that it wraps."""
    while isinstance(lvm, Module):
        yield lvm.__dict__
        lvm = lvm._modules.get("lvm")


def _paired(found: Any, wanted: Any) -> Iterator[tuple[str, Any, Any]]:
    """The names of each matrix that has names in both, with its place in a tuple or dict."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for place in found.keys() & wanted.keys():
            yield place, found[place], wanted[place]
    elif isinstance(found, tuple) and isinstance(wanted, tuple):
        yield "", found, wanted


def _differ(
    place: str, found: tuple[str, ...], wanted: tuple[str, ...], what: str
) -> ValueError:
    of = f" of {place}" if place else ""
    kept = f"vilvm.data.training_columns(lvm).columns{f'[{place!r}]' if place else ''}"
    if set(found) == set(wanted):
        chosen = list(wanted) if len(wanted) <= _SHOWN else f"[*{kept}]"
        return ValueError(
            f"{what}: the columns{of} are in another order than in training ({few(wanted)}); "
            f"pass frame[{chosen}]."
        )
    return ValueError(
        f"{what}: the columns{of} are not those of the training data ({few(wanted)}): they "
        f"{_faults(found, wanted)}; pass frame[[*{kept}]], or make a new model to train on others."
    )


def _faults(found: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Such as "lack b and have e"."""
    missing = [n for n in wanted if n not in found]
    extra = [n for n in found if n not in wanted]
    lack = [f"lack {few(missing)}"] if missing else []
    have = [f"have {few(extra)}"] if extra else []
    return " and ".join(lack + have)


def _check_width(data: Data | Converted, wanted: tuple[str, ...], what: str) -> None:
    x = next(iter(tensors_of(data.x)), None)
    if x is not None and len(x.shape) == 2 and x.shape[1] != len(wanted):
        raise ValueError(
            f"{what}: has {x.shape[1]} columns, and the training data had {len(wanted)} "
            f"({few(wanted)})."
        )


def few(names: Any, most: int = _SHOWN) -> str:
    """The first names, separated by commas."""
    shown = ", ".join(map(str, names[:most]))
    return f"{shown}, …" if len(names) > most else shown
