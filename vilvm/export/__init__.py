"""Draws, densities and data as an ArviZ DataTree, and netCDF files of it; the extra ``arviz``."""

# ruff: noqa: E402

from vilvm._runtime.extras import require

require("arviz", extra="arviz")

from vilvm.export.datatree import to_datatree
from vilvm.export.draws import draws_to_datatree
from vilvm.export.netcdf import load, save

__all__ = ["draws_to_datatree", "load", "save", "to_datatree"]
