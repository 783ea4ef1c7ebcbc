"""The arrows of the house point down: read from the imports, not from what anyone says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("vilvm/**/*.py"))
LEAVES = {"checks", "data", "files", "handlers", "memory", "precision", "progress", "rows", "threads", "unchanged", "world"}
GROUND = LEAVES | {"compiling", "lvm", "weights", "wrapped"}
UNDER_LVM = {"errors", "held", "parameters"}

# What each room may import of vilvm, besides itself.
ALLOWED = {
    "rows": set(),
    "checks": set(),
    "data": {"checks", "rows", "threads", "unchanged"},
    "files": set(),
    "handlers": set(),
    "memory": set(),
    "precision": set(),
    "progress": set(),
    "world": set(),
    "compiling": set(),
    "errors": set(),
    "held": set(),
    "parameters": {"errors", "held", "threads"},
    "threads": {"errors"},
    "unchanged": {"errors"},
    "lvm": LEAVES | UNDER_LVM,
    "weights": LEAVES | {"compiling", "lvm"},
    "wrapped": LEAVES | {"lvm"},
    "networks": {"checks"},
    "distributions": set(),
    "guides": GROUND | {"distributions", "networks", "training"},  # training: fit_guide and fit_prior need no trainer of their own
    "priors": GROUND | {"distributions", "networks", "training"},
    "objectives": GROUND | {"distributions", "networks"},
    "training": GROUND,
    "latent": GROUND,
    "partial": GROUND,
    "noise": GROUND,
    "evaluation": GROUND,
    "diagnostics": GROUND | {"evaluation", "training", "guides"},  # training: refits, optimised local guides, the alarm of a run
    "hdf5": {"memory"},
    "export": GROUND | {"hdf5"} | {"evaluation", "diagnostics"},
    "report": GROUND | {"latent", "evaluation", "diagnostics"},
    "datasets": {"checks", "data", "memory", "rows"},
    "testing": GROUND | {"training"},
}
ONLY_IN = {
    "matplotlib": {"report"},
    "arviz": {"export", "diagnostics"},
    "zuko": {"priors", "guides"},
    "sklearn": {"datasets", "priors", "evaluation"},
    "scipy": {"evaluation", "diagnostics"},
    "zarr": {"datasets"},
}


def room(path):
    return path.relative_to(ROOT / "vilvm").parts[0].removesuffix(".py")


def imports(path):
    """Every module a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "vilvm")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    here = room(path)
    if here == "__init__":
        return
    assert here in ALLOWED, f"{path} is in a room the design does not have"
    for module in imports(path):
        top, *rest = module.split(".")
        assert top not in ("models", "examples", "tests", "benchmarks"), f"{path} imports {module}"
        if top == "vilvm" and rest:
            assert rest[0] == here or rest[0] in ALLOWED[here], f"{path} imports {module}"
        if top in ONLY_IN:
            assert here in ONLY_IN[top], f"{path} imports {module}"


def test_there_is_no_cycle():
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {m for m in imports(path) if m.startswith("vilvm.")} - {name}
    done, underway = set(), []

    def visit(name):
        assert name not in underway, f"cycle: {' -> '.join([*underway[underway.index(name) :], name])}"
        if name in done or name not in graph:
            return
        underway.append(name)
        for other in sorted(graph[name]):
            visit(other)
        underway.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_only_weights_reads_traces():
    reading = re.compile(r"poutine\.trace\(|poutine import .*\btrace\b|(?<!_)get_trace\(|\.nodes\b")
    readers = {room(p) for p in FILES if reading.search(p.read_text(encoding="utf-8"))}
    assert readers == {"weights"}


def test_no_file_is_a_junk_drawer():
    names = {p.stem for p in ROOT.glob("**/*.py") if ".venv" not in p.parts}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_models_import_only_the_library():
    for path in (ROOT / "models").glob("*.py"):
        tops = {m.split(".")[0] for m in imports(path)}
        assert not tops & {"examples", "tests", "benchmarks", "models"}, path


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "vilvm" / "py.typed").exists()
