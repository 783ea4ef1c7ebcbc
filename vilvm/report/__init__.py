"""Figures, tables and findings of a run in one HTML file."""

from vilvm.report.page import Page, Table
from vilvm.report.provenance import command, environment

__all__ = ["Page", "Table", "command", "environment"]
