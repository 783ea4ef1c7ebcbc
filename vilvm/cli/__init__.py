"""The command ``vilvm``: train, evaluate, diagnose, infer and report from a terminal.

Each command takes a model and a data file, calls the function of the same name, and prints its
result as a table. ``vilvm COMMAND --help`` describes each with an example.
"""

from vilvm.cli.main import main

__all__ = ["main"]
