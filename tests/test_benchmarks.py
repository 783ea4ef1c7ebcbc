"""The benchmarks import, and their clock counts what it should; what they measure is not tested."""

import importlib
from pathlib import Path

import pytest

from benchmarks.interleaved import race, report

BENCHMARKS = sorted(
    p.stem for p in (Path(__file__).parents[1] / "benchmarks").glob("*.py") if p.stem not in ("__init__", "interleaved")
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_imports(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_cases_are_run_in_turn_and_compared_with_the_first(capsys):
    order = []
    seconds = race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    report("title", {"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]})
    assert "| b | 4 | 2.00 (2.00 to 2.00) |" in capsys.readouterr().out
