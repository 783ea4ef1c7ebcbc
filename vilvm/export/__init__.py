"""Draws, densities and data as an ArviZ DataTree, and netCDF files of it."""

from vilvm.export.datatree import to_datatree
from vilvm.export.netcdf import load, save

__all__ = ["load", "save", "to_datatree"]
