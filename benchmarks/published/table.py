"""The table of published numbers and ours, as Markdown."""

import json
from pathlib import Path
from typing import Any

from benchmarks.published.rows import ROWS

__all__ = ["markdown", "results_in"]

_HEAD = (
    "| row | published | IWAE-5000 | AIS (IWAE) on 500 | ELBO | active units | k̂ above | epochs | "
    "hours | seed |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def results_in(folder: Path) -> list[dict[str, Any]]:
    """The JSON files of a folder, in the order of the rows.

    Arguments:
        folder: of the results.
    """
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    order = list(ROWS)
    return sorted(found, key=lambda r: (order.index(r["row"]), r["seed"], r["share"]))


def markdown(results: list[dict[str, Any]]) -> str:
    """Negative log-likelihoods in nats per datum, with standard errors, one line a result.

    Arguments:
        results: contents of JSON files.
    """
    return "\n".join([_HEAD, *map(_line, results)])


def _line(result: dict[str, Any]) -> str:
    bounds, ais = result["bounds"], result["ais"]
    cells = [
        result["row"],
        "–" if result["published"] is None else f"{result['published']:.2f}",
        _negative(bounds["iwae"]),
        f"{_negative(ais)} ({-result['iwae_of_ais_images']:.2f})",
        _negative(bounds["elbo"]),
        result["active_units"],
        f"{result['pareto_k']['share_above']:.1%}",
        f"{result['epochs']:.4g} of {result['schedule']['epochs']:,}",
        f"{result['training_seconds'] / 3600:.2f}",
        result["seed"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _negative(bound: dict[str, Any]) -> str:
    return f"{-bound['mean']:.2f} ± {bound['se']:.2f}"
