"""Measures of how hard the code is to read, and their limits.

    python -m benchmarks.readability [--list] [FOLDER ...]

Tokens and conditional expressions are counted per line of code, without docstrings and comments.
The cyclomatic complexity of a function counts, besides its branches, loops and handlers, every
conditional expression, comprehension, assertion and further operand of ``and`` and ``or``. Nested
functions are counted separately. ``--list`` names every place beyond a limit. The exit status is 1
if a limit is exceeded.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PHRASES = ("told", "tells", "held against", "looked at", "by itself")
_PHRASE = re.compile(rf"\b({'|'.join(PHRASES)})\b", re.IGNORECASE)
_BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.Assert,
    ast.match_case,
)
_SILENT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Limits(NamedTuple):
    """The limits.

    Arguments:
        entries: public rooms and files of the package; the last four are the rooms `inference`,
            `saving`, `cli` and `trackers`, which hold what users asked for later.
        tokens: in a line of code.
        conditionals: conditional expressions in 1,000 lines of code.
        width: characters of a line; a line with a URL may be longer.
        complexity: cyclomatic complexity of a function.
        positional: parameters of a function that may be given by position.
    """

    entries: int = 20
    tokens: float = 8.9
    conditionals: float = 15.0
    width: int = 99
    complexity: int = 10
    positional: int = 5


LIMITS = Limits()


class Measures(NamedTuple):
    """Counts of some files, and the places beyond a limit."""

    lines: int
    tokens: int
    conditionals: int
    complexity: int
    places: list[str]


def entries(package: Path) -> list[str]:
    """The public rooms and files of a package, without the gallery, which has its own folder."""
    names = {p.stem for p in package.iterdir() if p.is_dir() or p.suffix == ".py"}
    return sorted(n for n in names if not n.startswith("_") and n != "models")


def package_files() -> list[Path]:
    """The Python files of the package and of the gallery."""
    root = Path(__file__).parents[1]
    return sorted(
        p for room in ("vilvm", "models") for p in (root / room).rglob("*.py")
    )


def measure(files: list[Path]) -> Measures:
    """The measures of some Python files together."""
    lines = tokens = conditionals = complexity = 0
    places: list[str] = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        counted, code = _code(text, tree)
        lines, tokens = lines + code, tokens + counted
        conditionals += sum(isinstance(node, ast.IfExp) for node in ast.walk(tree))
        places += [f"{path}:{line}" for line in _in_text(text)]
        places += [f"{path}:{line}" for line in _nested(tree)]
        for function in (n for n in ast.walk(tree) if isinstance(n, _Function)):
            complexity = max(complexity, cyclomatic(function))
            places += [
                f"{path}:{function.lineno}: {fault}" for fault in _faults(function)
            ]
    return Measures(lines, tokens, conditionals, complexity, places)


def cyclomatic(function: ast.AST) -> int:
    """The cyclomatic complexity of a function, without the functions within it."""
    return 1 + sum(map(_decisions, _own(function)))


def _decisions(node: ast.AST) -> int:
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return int(isinstance(node, _BRANCHES))


def _own(function: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, _Function | ast.ClassDef | ast.Lambda):
            yield node
            yield from _own(node)


def _code(text: str, tree: ast.Module) -> tuple[int, int]:
    """The number of tokens, and the number of lines with tokens."""
    documented = {line for node in ast.walk(tree) for line in _docstring(node)}
    found, lines = 0, set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _SILENT and token.start[0] not in documented:
            found += 1
            lines.update(range(token.start[0], token.end[0] + 1))
    return found, len(lines)


def _docstring(node: ast.AST) -> range:
    """The lines of a statement that is only a string."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return range(0)
    if not isinstance(node.value.value, str):
        return range(0)
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _in_text(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LIMITS.width and "://" not in line:
            yield f"{number}: {len(line)} characters"
        for phrase in _PHRASE.findall(line) * ("PHRASES = " not in line):
            yield f"{number}: {phrase!r}"


def _nested(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            within = (
                n for n in ast.walk(node) if isinstance(n, ast.IfExp) and n is not node
            )
            if any(True for _ in within):
                yield f"{node.lineno}: nested conditional expression"


def _faults(function: _Function) -> Iterator[str]:
    found = cyclomatic(function)
    if found > LIMITS.complexity:
        yield f"{function.name} has complexity {found}"
    positional = [*function.args.posonlyargs, *function.args.args]
    count = sum(a.arg not in ("self", "cls") for a in positional)
    if count > LIMITS.positional:
        yield f"{function.name} has {count} positional parameters"


def main(arguments: list[str] | None = None) -> int:
    """Prints the measures beside their limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", default=["vilvm", "models"])
    parser.add_argument(
        "--list", action="store_true", help="name every place beyond a limit"
    )
    options = parser.parse_args(arguments)
    given = [Path(folder) for folder in options.folders]
    files = sorted(p for f in given for p in ([f] if f.is_file() else f.rglob("*.py")))
    found, rooms = measure(files), entries(Path(__file__).parents[1] / "vilvm")
    rows = [
        ("public entries of vilvm/", len(rooms), LIMITS.entries),
        ("tokens a line of code", found.tokens / found.lines, LIMITS.tokens),
        (
            "conditional expressions in 1,000 lines",
            1000 * found.conditionals / found.lines,
            LIMITS.conditionals,
        ),
        ("largest cyclomatic complexity", found.complexity, LIMITS.complexity),
        ("lines, expressions and phrases beyond a limit", len(found.places), 0),
    ]
    print(f"{len(files)} files, {found.lines:,} lines of code")
    for name, value, limit in rows:
        print(f"{name:<48}{value:>8.1f}   at most {limit:g}")
    if options.list:
        print(*found.places, sep="\n")
    return int(any(value > limit for _, value, limit in rows))


if __name__ == "__main__":
    sys.exit(main())
