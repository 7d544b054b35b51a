"""Count the product: `python -m tests.architecture.count [ANOTHER CHECKOUT]` prints both beside each other.

files and lines, in all and for each package          functions over 50 lines
modules in each room                                  excepts that take every error
modules below 80 lines that one module imports        tests that patch a constant of time; branches on `job.kind`
"""

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("api", "jobs", "workers", "cli")
SHORT_MODULE: Final = 80
LONG_FUNCTION: Final = 50
_TIME: Final = r"SECONDS|PATIENCE|_LOOK|INTERVAL|TTL|_AGAIN|_AWAY|AFTER"
_PATCHED_TIME: Final = re.compile(rf"setattr\([^)]*\"[\w.]*({_TIME})\"", re.ASCII)
_BROAD: Final = {"Exception", "BaseException"}
_KIND: Final = re.compile(
    r"\b([Jj]ob|old)\.kind( [!=]=| (not )?in |\.in_)|\bkind [!=]= (INGESTION|(responses\.)?KIND)\b", re.ASCII
)


class Tree:
    """The product and the tests of one checkout, parsed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.texts = {
            path.relative_to(root): path.read_text()
            for package in PACKAGES
            for path in sorted((root / package).rglob("*.py"))
        }
        self.parsed = {path: ast.parse(text) for path, text in self.texts.items()}
        self.tests = [path.read_text() for path in sorted((root / "tests").rglob("*.py"))]

    def figures(self) -> dict[str, int]:
        """Return every figure by its name, in the order in which they are shown."""
        return {
            **self._sizes(),
            f"modules below {SHORT_MODULE} lines with one importer": self._satellites(),
            f"functions over {LONG_FUNCTION} lines": sum(1 for _ in self._long_functions()),
            "excepts that take every error": sum(map(_broad, chain.from_iterable(map(ast.walk, self.parsed.values())))),
            "patches of a constant of time in tests": sum(len(_PATCHED_TIME.findall(text)) for text in self.tests),
            "tests of a job's kind": sum(map(bool, map(_KIND.search, self._lines()))),
            **self._rooms(),
        }

    def _sizes(self) -> dict[str, int]:
        files = Counter(path.parts[0] for path in self.texts)
        lines = Counter[str]()
        for path, text in self.texts.items():
            lines[path.parts[0]] += len(text.splitlines())
        found = {"files": files.total(), "lines": lines.total()}
        for package in PACKAGES:
            found |= {f"files of {package}": files[package], f"lines of {package}": lines[package]}
        return found

    def _rooms(self) -> dict[str, int]:
        """Return how many modules each folder holds, without its `__init__` and its folders."""
        rooms = Counter(str(path.parent) for path in self.texts if path.name != "__init__.py")
        return {f"modules in {room}/": count for room, count in sorted(rooms.items())}

    def _lines(self) -> Iterator[str]:
        return chain.from_iterable(text.splitlines() for text in self.texts.values())

    def _satellites(self) -> int:
        importers: dict[str, set[Path]] = {}
        for path, tree in self.parsed.items():
            for name in set(_imports(tree)):
                importers.setdefault(name, set()).add(path)
        return sum(
            len(importers.get(_dotted(path), ())) == 1
            for path, text in self.texts.items()
            if path.name != "__init__.py" and len(text.splitlines()) < SHORT_MODULE
        )

    def _long_functions(self) -> Iterator[ast.AST]:
        for node in chain.from_iterable(map(ast.walk, self.parsed.values())):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and (node.end_lineno or 0) - node.lineno + 1 > LONG_FUNCTION:
                yield node


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules that `tree` may import: `from a import b` may mean the module `a.b`, or a name in `a`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _broad(node: ast.AST) -> bool:
    if not isinstance(node, ast.ExceptHandler):
        return False
    names = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
    return any(name is None or (isinstance(name, ast.Name) and name.id in _BROAD) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the product's files, lines and oddities.")
    parser.add_argument("before", nargs="?", type=Path, help="another checkout, shown in the first column")
    before = parser.parse_args().before
    columns = [Tree(root).figures() for root in ([before] if before else []) + [ROOT]]
    for name in dict.fromkeys(chain.from_iterable(columns)):
        print("".join(f"{column.get(name, 0):>8,}" for column in columns), "", name)


if __name__ == "__main__":
    main()
