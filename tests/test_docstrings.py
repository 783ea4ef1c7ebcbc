"""Every public name has a docstring whose arguments are those of the signature."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest

import vilvm

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(vilvm.__path__, "vilvm.")
    if not any(part.startswith("_") for part in module.name.split("."))
)
# A heading stands at the margin; the entries below it are indented by four.
SECTION = re.compile(r"^Arguments:\n((?:(?:    .*)?\n?)*)", re.MULTILINE)
ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", re.MULTILINE)


def public_objects():
    """The public classes and functions, by the shortest path that exports each."""
    found = {}
    for module in sorted(MODULES, key=lambda name: name.count(".")):
        imported = importlib.import_module(module)
        for name in getattr(imported, "__all__", ()):
            thing = getattr(imported, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found.setdefault(id(thing), (f"{module}.{name}", thing))
    return dict(sorted(found.values()))


def documented(thing):
    sections = SECTION.findall(inspect.getdoc(thing) or "")
    entries = [entry for section in sections for entry in ENTRY.findall(section)]
    return {name.strip("*") for entry in entries for name in entry.split(", ")}


def expected(thing):
    """The parameters of a function, the fields of a record, or those of ``__init__``."""
    if dataclasses.is_dataclass(thing):
        names = [field.name for field in dataclasses.fields(thing) if field.init]
    elif hasattr(thing, "_fields"):
        names = thing._fields
    elif inspect.isfunction(thing):
        names = inspect.signature(thing).parameters
    elif is_constructed(thing):
        names = inspect.signature(thing.__init__).parameters
    else:
        return documented(thing)
    return {name for name in names if not name.startswith("_") and name != "self"}


def is_constructed(thing):
    """Whether a class has an ``__init__`` of its own; a protocol is not constructed."""
    return "__init__" in vars(thing) and not getattr(thing, "_is_protocol", False)


def faults(thing):
    doc = thing.__doc__
    # Dataclasses and NamedTuples generate a docstring that begins with the signature.
    if not doc or doc.startswith(f"{thing.__name__}("):
        return ["no docstring"]
    missing = expected(thing) - documented(thing)
    unknown = documented(thing) - expected(thing)
    found = [f"{name} is not documented" for name in sorted(missing)]
    found += [f"{name} is documented and does not exist" for name in sorted(unknown)]
    # The renderer takes an example under any other heading for Markdown.
    if (inspect.isfunction(thing) or ">>> " in doc) and "Examples:\n" not in doc:
        found += ["no Examples section"]
    return found


def room_of(path):
    """The module of the first level that a path is in; ``vilvm`` for names of the package."""
    return ".".join(path.split(".")[:2])


PUBLIC = public_objects()
ROOMS = [name for name in MODULES if name.count(".") == 1 and name != "vilvm.models"]


@pytest.mark.parametrize("room", [*ROOMS, "vilvm.data.datasets"])
def test_room_lists_its_public_names(room):
    module = importlib.import_module(room)
    assert module.__doc__
    assert module.__all__
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("room", sorted({room_of(path) for path in PUBLIC}))
def test_docstrings_agree_with_signatures(room):
    found = {path: faults(t) for path, t in PUBLIC.items() if room_of(path) == room}
    assert found
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_faults_are_found():
    def example(alpha, beta):
        """Adds.

        Arguments:
            alpha: first summand.
            gamma: none.
        """

    assert faults(example) == [
        "beta is not documented",
        "gamma is documented and does not exist",
        "no Examples section",
    ]
