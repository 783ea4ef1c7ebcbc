"""``describe``: what a file of ``save`` says of its model, without loading it."""

from pathlib import Path
from typing import Any, NamedTuple

from vilvm._runtime.argument_checks import check_path
from vilvm.data._column_names import ColumnNames
from vilvm.saving._file import read_model

__all__ = ["SavedModel", "describe"]


class SavedModel(NamedTuple):
    """What a file of ``vilvm.save`` says of its model.

    Arguments:
        kind: the class of the model.
        obstacle: why ``vilvm.load(path)`` cannot make the model without `lvm`; empty if it can.
        shapes: of parameters and buffers, by name.
        versions: of vilvm, torch and pyro that wrote the file.
        data: name, split, number, transform and fingerprint of the training data; None if they
            were not given.
        saved: when, in ISO format.
        columns: of the training data, if they had names: a tuple of them, or one for each matrix
            of a tuple or dict by its place; else None.

    Examples:
        >>> from vilvm.saving import SavedModel
        >>> SavedModel("vilvm.models.ppca.PPCA", "", {}, {}, None, "2026-01-01").obstacle
        ''
    """

    kind: str
    obstacle: str
    shapes: dict[str, tuple[int, ...]]
    versions: dict[str, str]
    data: dict[str, Any] | None
    saved: str
    columns: Any = None


def describe(path: Path | str) -> SavedModel:
    """What a file of ``vilvm.save`` says of its model. It is read, and no model is made.

    ``describe(path).data["fingerprint"] == vilvm.data.as_data(x).fingerprint()`` if the model was
    trained on `x`, and `data` was given to ``save``.

    Arguments:
        path: of the file.

    Returns:
        SavedModel.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or of another version.

    Examples:
        >>> import pathlib, tempfile, torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.saving import describe
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = vilvm.save(PPCA(data_dim=6, latent_dim=2), pathlib.Path(folder, "ppca"))
        ...     found = describe(path)
        >>> found.kind, found.shapes["W"]
        ('vilvm.models.ppca.PPCA', (6, 2))
    """
    header, tensors = read_model(check_path("describe: path", path))
    columns = ColumnNames.from_json(header["columns"])
    return SavedModel(
        kind=header["class"],
        obstacle=header["obstacle"],
        shapes={n: tuple(tensors[n].shape) for n in header["state"] if n in tensors},
        versions=header["versions"],
        data=header["data"],
        saved=header["saved"],
        columns=columns and columns.columns,
    )
