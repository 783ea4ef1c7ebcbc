"""DataTrees as netCDF files: written atomically, and read only if they are whole and our own."""

from importlib.metadata import version
from pathlib import Path

import xarray as xr

from vilvm._runtime.argument_checks import check_path
from vilvm._runtime.files import atomic
from vilvm._runtime.hdf5 import check_contents, root_attributes

__all__ = ["load", "save"]

# An attribute of a saved tree that ``to_datatree`` did not make.
_MARK = "written_by_vilvm"


def save(tree: xr.DataTree, path: str | Path) -> Path:
    """Writes a DataTree to a netCDF file, atomically: a failed write leaves the old file.

    Arguments:
        tree: the DataTree.
        path: of the file; missing folders are made.

    Returns:
        The path, which ``load`` or ``arviz.from_netcdf`` reads.

    Raises:
        ValueError: `tree` is not a DataTree, or `path` is a folder or not the name of a file.

    Examples:
        >>> import tempfile, torch
        >>> from vilvm.export import load, save, to_datatree
        >>> from vilvm.models.vae import VAE
        >>> tree = to_datatree(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=30)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save(tree, f"{folder}/posterior.nc")).identical(tree)
        True
    """
    if not isinstance(tree, xr.DataTree):
        raise ValueError(
            f"save: tree must be a DataTree, such as to_datatree returns; got a "
            f"{type(tree).__name__}."
        )
    path = check_path("save: path", path)
    if path.is_dir():
        raise ValueError(f"save: {path} is a folder; give the path of a file in it.")
    marked = tree.copy()
    if tree.attrs.get("inference_library") != "vilvm":
        marked.attrs = {**tree.attrs, _MARK: version("vilvm")}
    with atomic(path) as temporary:
        marked.to_netcdf(temporary, engine="h5netcdf")
    return path


def load(path: str | Path) -> xr.DataTree:
    """Reads a DataTree that ``save`` wrote into memory, from this file only.

    Arguments:
        path: of the file.

    Returns:
        The DataTree.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not netCDF, is truncated, was not written by ``save``, refers to
            another file, or refers to one object twice.

    Examples:
        >>> import tempfile, torch
        >>> from vilvm.export import load, save, to_datatree
        >>> from vilvm.models.vae import VAE
        >>> tree = to_datatree(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=30)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save(tree, f"{folder}/posterior.nc")).posterior.z.shape
        (1, 30, 4, 2)
    """
    path = check_path("load: path", path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path} to load a DataTree from; vilvm.export.save(tree, path) "
            "writes one."
        )
    try:
        tree = _read_own(path)
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        RecursionError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{path} cannot be read as netCDF ({_reason(error)}): it is truncated or another kind "
            "of file; write it again with vilvm.export.save."
        ) from None
    if tree is None:
        raise ValueError(
            f"{path} was not written by vilvm.export.save; read it by arviz.from_netcdf, if you "
            "trust it."
        )
    tree.attrs.pop(_MARK, None)
    return tree


def _read_own(path: Path) -> xr.DataTree | None:
    """The tree, or None if ``save`` did not write the file."""
    attributes = root_attributes(path)
    if _MARK not in attributes and attributes.get("inference_library") != "vilvm":
        return None
    check_contents(path)
    return xr.load_datatree(path, engine="h5netcdf")


def _reason(error: Exception) -> str:
    """The first line of the error's message, or its type."""
    if not str(error):
        return type(error).__name__
    return str(error).splitlines()[0]
