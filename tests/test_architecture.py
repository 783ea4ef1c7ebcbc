"""Rooms import only the rooms below them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("vilvm/**/*.py"))
GROUND = {"_compile", "_runtime", "data", "lvm", "weights"}

# What each room may import of vilvm, besides itself.
ALLOWED = {
    "_runtime": set(),
    "_compile": {"_runtime"},
    "models": set(),  # its __init__; the gallery itself imports any public room
    "networks": {"_runtime"},
    "distributions": {"_runtime"},
    "data": {"_runtime"},
    "lvm": {"_runtime", "data"},
    "weights": {"_compile", "_runtime", "data", "lvm"},
    "objectives": GROUND,
    "trackers": {"_runtime"},
    "training": GROUND | {"trackers"},
    "evaluation": GROUND,
    # training: fit_local_guide calls fit
    "guides": GROUND | {"distributions", "networks", "training"},
    # training: fit_prior calls fit for a flow
    "priors": GROUND | {"distributions", "networks", "training"},
    "wrappers": GROUND | {"guides", "networks", "priors", "training"},
    # training: refits, optimised local guides, the collapse alarm of a run; wrappers: float64
    "diagnostics": GROUND | {"evaluation", "training", "guides", "wrappers"},
    # training: flows; wrappers: float64
    "inference": GROUND
    | {
        "diagnostics",
        "distributions",
        "evaluation",
        "export",
        "guides",
        "training",
        "wrappers",
    },
    "plots": GROUND | {"evaluation", "diagnostics"},
    "report": GROUND | {"evaluation", "diagnostics", "plots"},
    "export": GROUND | {"evaluation", "diagnostics"},
    "testing": GROUND | {"training"},
    "saving": GROUND | {"training"},
    "cli": GROUND
    | {
        "diagnostics",
        "evaluation",
        "inference",
        "plots",
        "report",
        "saving",
        "training",
    },
    "_public": GROUND
    | {"diagnostics", "evaluation", "inference", "saving", "training"},
    "__main__": {"cli"},
}
ONLY_IN = {
    "matplotlib": {"plots", "report"},
    "arviz": {"export"},
    "arviz_base": {"export"},
    "arviz_stats": {"diagnostics"},
    "xarray": {"export"},
    "jinja2": {"report"},
    "torchvision": {"data"},
    "mlflow": {"trackers"},
    "wandb": {"trackers"},
    "zuko": {"priors", "guides"},
    "sklearn": {"data", "priors", "evaluation"},
    "scipy": {"evaluation", "diagnostics", "inference"},
    "zarr": {"data"},
    "pyarrow": {"data"},
    "anndata": {"data"},
    "polars": set(),
}


def room(path):
    return path.relative_to(ROOT / "vilvm").parts[0].removesuffix(".py")


def imports(path):
    """Every module a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 1 and ROOT / "models" in path.parents:
                continue  # a file of the same model
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if node.module == "vilvm"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    here = room(path)
    if here == "__init__":
        return
    assert here in ALLOWED, f"{path} is in a room that ALLOWED does not list"
    for module in imports(path):
        assert may_import(here, module), f"{path} imports {module}"


def may_import(here, module):
    """Whether files of the room `here` may import a module."""
    top, *rest = module.split(".")
    if top in ("models", "examples", "tests", "benchmarks"):
        return False
    if top == "vilvm" and rest:
        return rest[0] in {here, *ALLOWED[here]}
    return here in ONLY_IN.get(top, {here})


def test_contributing_lists_the_allowed_imports():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = {
        room: set(re.findall(r"\w+", allowed)) - {"nothing"}
        for room, allowed in re.findall(
            r"^    (\w+) +(?:->|=) +(.+)$", text, re.MULTILINE
        )
    }
    ground = listed.pop("ground")
    assert ground == GROUND
    for allowed in listed.values():
        if "ground" in allowed:
            allowed.remove("ground")
            allowed.update(ground)
    assert listed == {
        room: allowed for room, allowed in ALLOWED.items() if room != "models"
    }


def test_there_is_no_cycle():
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
            ".__init__"
        )
        graph[name] = {m for m in imports(path) if m.startswith("vilvm.")} - {name}
    done, underway = set(), []

    def visit(name):
        assert name not in underway, (
            f"cycle: {' -> '.join([*underway[underway.index(name) :], name])}"
        )
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
    reading = re.compile(
        r"poutine\.trace\(|poutine import .*\btrace\b|(?<!_)get_trace\(|(?<!graph)\.nodes\b"
    )
    readers = {room(p) for p in FILES if reading.search(p.read_text(encoding="utf-8"))}
    assert readers == {"weights"}


def test_few_files_import_by_name():
    """Results find the room of plots above them; the others find models, or import lazily."""
    by_name = re.compile(r"import_module\(|__import__\(")
    users = [p for p in FILES if by_name.search(p.read_text(encoding="utf-8"))]
    assert [p.relative_to(ROOT / "vilvm").as_posix() for p in users] == [
        "__init__.py",
        "_runtime/results.py",
        "cli/_models.py",
        "cli/main.py",
        "saving/_recipes.py",
    ]


def test_no_file_is_called_utils_or_helpers():
    names = {p.stem for p in ROOT.glob("**/*.py") if ".venv" not in p.parts}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_models_import_only_the_library():
    for path in (ROOT / "models").glob("**/*.py"):
        found = set(imports(path))
        assert not {m.split(".")[0] for m in found} & {
            "examples",
            "tests",
            "benchmarks",
        }, path
        assert not any(m.startswith("vilvm.models") for m in found), path


def test_package_is_marked_as_typed():
    assert (ROOT / "vilvm" / "py.typed").exists()
