"""Figures, tables and findings of a run in one HTML file."""

from vilvm.report.page import Page, Table, diagnosis_page
from vilvm.report.provenance import command, environment

__all__ = ["Page", "Table", "command", "diagnosis_page", "environment"]
