"""What docs/architecture, docstrings and comments say of the code is so: modules, names, rooms, kinds and pools."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from jobs.known_kinds import EVENT_TYPES
from jobs.ledger import kinds
from jobs.ledger.states import TERMINAL
from jobs.queues import POOL_QUEUES
from jobs.security.permissions import AREAS
from tests.architecture.count import PACKAGES, ROOT

ARCHITECTURE = ROOT / "docs" / "architecture"
OURS = (*PACKAGES, "bench", "tests", "migrations")
#: A module or a name in it, from its package on.
DOTTED = re.compile(rf"`((?:{'|'.join(OURS)})(?:\.[A-Za-z_]\w*)+)(?:\(\))?`")
PERMISSION = re.compile(rf"api\.(?:{'|'.join(map(re.escape, AREAS))})\.(?:read|write|request)$")
PATH = re.compile(rf"`((?:{'|'.join(OURS)}|docs)/[\w./-]*)`")
#: A name of the code, or what stands in a module or class of which only the last name is said.
NAME = re.compile(r"`([A-Za-z_]\w*)(?:\.([A-Za-z_]\w*))?(?:\(\))?`")
#: `job` is a row and the beginning of events, `models` that of a file.
NO_MODULES = {"job", "models", *OURS}


def texts() -> list[Path]:
    """Return the modules and documents; migrations and the change log keep the names of their time."""
    of_code = [path for package in OURS for path in (ROOT / package).rglob("*.py")]
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(path for path in (*of_code, *documents) if "versions" not in path.parts and path != Path(__file__))


def lost(text: str, root: Path = ROOT) -> list[str]:
    """Return the modules, names in modules, and paths that `text` has in back-ticks and that do not exist."""
    names = [name for name in DOTTED.findall(text) if not (PERMISSION.match(name) or _exists(root, name.split(".")))]
    return names + [path for path in PATH.findall(text) if not (root / path).exists()]


def _exists(root: Path, parts: list[str]) -> bool:
    """Return whether a module, or a name in it, exists; a name in a class is looked for in the whole module."""
    folder = root
    while parts and (folder / parts[0]).is_dir():
        folder, parts = folder / parts[0], parts[1:]
    module = folder / f"{parts[0]}.py" if parts and (folder / f"{parts[0]}.py").is_file() else None
    if module is None:
        return not parts or set(parts) <= _names(folder / "__init__.py")
    return set(parts[1:]) <= _names(module)


@cache
def _names(module: Path) -> set[str]:
    """Return what is defined in a module, in its classes too."""
    return set(_defined(ast.parse(module.read_text()))) if module.is_file() else set()


def _defined(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
                yield from _defined(node)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def test_modules_that_are_named_exist() -> None:
    found = {str(path.relative_to(ROOT)): names for path in texts() if (names := lost(path.read_text()))}

    assert found == {}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("see `jobs.ledger`, `jobs.ledger.ledger`, `jobs.ledger.ledger.move`, `jobs.ledger.ledger.Claim.take()`", []),
        ("see `jobs/ledger` and `jobs/ledger/ledger.py`, `jobs.ledger.COUNT`; jobs.gone and `job.gone`", []),
        ("see `jobs.gone`, `jobs.ledger.gone`", ["jobs.gone", "jobs.ledger.gone"]),
        (
            "see `jobs.ledger.ledger.gone` and `jobs.ledger.ledger.Claim.gone`",
            ["jobs.ledger.ledger.gone", "jobs.ledger.ledger.Claim.gone"],
        ),
        ("see `jobs/ledger/gone.py` and `jobs/gone/`", ["jobs/ledger/gone.py", "jobs/gone/"]),
    ],
)
def test_name_of_missing_module_is_reported(tmp_path: Path, text: str, names: list[str]) -> None:
    folder = tmp_path / "jobs" / "ledger"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("COUNT: int = 1\n")
    (folder / "ledger.py").write_text("def move(): ...\nclass Claim:\n    def take(self): ...\n")

    assert lost(text, tmp_path) == names


def unknown_names(text: str, words: set[str], modules: dict[str, set[str]]) -> list[str]:
    """Return the names in back-ticks that no code has, and those that their module or class does not have."""
    unknown = []
    for first, last in NAME.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not last:
            missing = first not in words and not first.startswith("NIGHTMILL_")
        elif last in ("py", "md"):
            missing = first not in modules
        else:
            is_code = first in modules and first not in NO_MODULES and f"{first}.{last}" not in EVENT_TYPES
            missing = is_code and last not in modules[first]
        if missing:
            unknown.append(f"{first}.{last}" if last else first)
    return unknown


def test_names_in_the_pages_of_the_architecture_exist() -> None:
    words: set[str] = set()
    modules: dict[str, set[str]] = {}
    for path in (path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.py")):
        words.update(re.findall(r"\w+", path.read_text()))
        if path.parts[len(ROOT.parts)] != "tests":
            modules.setdefault(path.stem, set()).update(_names(path))
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    modules.setdefault(node.name, set()).update(_defined(node))
    found = {page.name: unknown_names(page.read_text(), words, modules) for page in ARCHITECTURE.glob("*.md")}

    assert {page: names for page, names in found.items() if names} == {}


def test_missing_name_in_page_is_reported() -> None:
    kept = "`move`, `ledger.move`, `ledger.py`, `NIGHTMILL_X`, `job.created`\n```\n`drawing`\n```\n"
    text = f"{kept}`gone`, `ledger.gone`, `gone.py`"

    assert unknown_names(text, {"move"}, {"ledger": {"move"}, "job": set()}) == ["gone", "ledger.gone", "gone.py"]


def tree_of(page: str) -> dict[str, set[str]]:
    """Return what the tree on a page names below each package; the line of a package may name its folders."""
    tree: dict[str, set[str]] = {}
    package = ""
    [block] = re.findall(r"```text\n((?:(?!```).)*^jobs/ .*?)```", page, re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        if line.startswith(" "):
            [names] = re.findall(r"^ +((?:\w+(?:/|\.py) ?)+)", line)
        else:
            package, _, names = line.partition("/")
            tree[package] = set()
        tree[package].update(re.findall(r"\w+(?:/|\.py)", names))
    return tree


def test_the_tree_of_the_overview_has_every_room() -> None:
    tree = tree_of((ARCHITECTURE / "overview.md").read_text())
    rooms = {
        package: {f"{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")} for package in PACKAGES
    }

    assert {package: {name for name in tree[package] if name.endswith("/")} for package in PACKAGES} == rooms
    assert [package for package in tree if not (ROOT / package).is_dir()] == []
    assert [name for package in tree for name in tree[package] if not (ROOT / package / name).exists()] == []


def test_rooms_are_read_from_a_tree() -> None:
    tree = [
        "jobs/    the ledger",
        "  db/ files/   rows, training/ not",
        "  x.py   one file",
        "cli/  commands/ (verbs), up/",
    ]
    page = "\n".join(["```text", "a drawing", "```", "", "```text", *tree, "```", "", "```text", "b", "```"])

    assert tree_of(page) == {"jobs": {"db/", "files/", "x.py"}, "cli": {"commands/", "up/"}}


def kinds_of(page: str) -> list[str]:
    """Return the kinds in the first column of the table under the headline "Kinds"."""
    section = page.partition("\n## Kinds\n")[2]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def test_the_table_of_kinds_has_every_kind() -> None:
    assert sorted(kinds_of((ARCHITECTURE / "job-life.md").read_text())) == sorted(kinds.TABLE)


def test_kinds_are_read_from_a_table() -> None:
    page = "| `state` | x |\n\n## Kinds\n\n| kind | by |\n|---|---|\n| `a`, `b` | `c` |\n| `d` | x |\n"

    assert kinds_of(page) == ["a", "b", "d"]


@pytest.mark.parametrize(("term", "names"), [("terminal state", TERMINAL), ("pool", POOL_QUEUES)])
def test_glossary_lists_pools_and_states_of_the_code(term: str, names: Iterator[str]) -> None:
    [meaning] = re.findall(rf"^\| {term} \| (.*) \|$", (ARCHITECTURE / "glossary.md").read_text(), re.MULTILINE)

    assert set(re.findall(r"`(\w+)`", meaning)) == {str(name) for name in names}
