"""Thin scripts: ``python -m examples.NAME``."""
