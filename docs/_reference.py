"""Makes one page of the reference a public room, from its files that define public names.

A page shows the docstring of the file, with its mathematics, and the names that the room's
``__all__`` lists. MkDocs runs the hooks ``on_config`` and ``on_files``.
"""

import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import vilvm


def rooms() -> list[str]:
    """The public rooms of vilvm, without the gallery, which has pages of its own."""
    names = [
        m.name
        for m in pkgutil.iter_modules(vilvm.__path__)
        if not m.name.startswith("_")
    ]
    return [f"vilvm.{n}" for n in names if n != "models"] + ["vilvm.data.datasets"]


def definitions(room: ModuleType) -> dict[str, list[str]]:
    """The names of a room's ``__all__`` by the file that defines them."""
    files: dict[str, list[str]] = {}
    for name in room.__all__:
        files.setdefault(_file_of(room, name), []).append(name)
    return files


def _file_of(room: ModuleType, name: str) -> str:
    """The module that defines a name; an alias of a type carries another module's name."""
    defined_in = getattr(getattr(room, name), "__module__", room.__name__)
    if defined_in.startswith("vilvm"):
        return defined_in
    within = [m for m in sys.modules if m.startswith(f"{room.__name__}.")]
    exporting = (m for m in within if name in getattr(sys.modules[m], "__all__", ()))
    return next(exporting, room.__name__)


def page(name: str) -> str:
    """The Markdown of a room's page."""
    room = importlib.import_module(name)
    assert room.__doc__, f"{name} has no docstring"
    lines = [f"# {name}", "", room.__doc__, ""]
    for file, names in sorted(definitions(room).items()):
        if "._" in file:  # private: only the names, under the room's path
            lines += [f"::: {name}.{n}\n" for n in names]
            continue
        lines += [f"::: {file}", "    options:", f"      members: [{', '.join(names)}]"]
        if file == name:
            lines += [
                "      show_root_heading: false",
                "      show_docstring_modules: false",
            ]
        lines += [""]
    return "\n".join(lines)


def overview() -> str:
    """The Markdown of the first page: each room with the first sentence of its docstring."""
    lines = ["# Reference", "", "| room | |", "|---|---|"]
    for room in rooms():
        about = (importlib.import_module(room).__doc__ or "").split("\n")[0]
        lines.append(f"| [`{room}`]({Path(address(room)).name}) | {about} |")
    return "\n".join(lines)


def on_config(config: MkDocsConfig) -> None:
    for section in config.nav or []:
        if "Reference" in section:
            pages = [{room.removeprefix("vilvm."): address(room)} for room in rooms()]
            section["Reference"] = ["reference/index.md", *pages]


def on_files(files: Files, config: MkDocsConfig) -> None:
    made = {address(room): page(room) for room in rooms()}
    made["reference/index.md"] = overview()
    for where, content in made.items():
        files.append(File.generated(config, where, content=content))


def address(room: str) -> str:
    """Where the page of a room stands among the pages."""
    return str(Path("reference", room.removeprefix("vilvm.") + ".md"))
