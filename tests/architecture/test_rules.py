"""The rules of the tree that no linter knows, each with the reason that made it a rule."""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "jobs", "workers", "cli", "migrations", "bench")
MOST_LINES = 600

# Who moves a state: the ledger (jobs), and the modules that guard their own table's states the same way.
STATE_WRITERS = {
    "jobs/ledger/ledger.py",
    "jobs/ledger/shards.py",
    "jobs/registry/models.py",
    "jobs/webhooks/deliveries.py",
}
# Not rows: a circuit breaker, the supervisor's processes, a worker's own standing.
OTHER_STATES = {
    "workers/engines/http/endpoints.py",
    "cli/up/service.py",
    "workers/engine_process.py",
    "workers/runtime/exclusive_device.py",
    "workers/runtime/heartbeat.py",
}

# Folders of one person's or one machine's. Written in halves, so that this file does not find itself.
MACHINE_PATHS = [
    re.compile(pattern)
    for pattern in (r"/home/" + r"\w+/", r"/Users/" + r"\w+/", r"/ro" + r"ot/", r"/wo" + r"rk/", r"/opt/wh" + r"eels")
]


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_has_docstring() -> None:
    silent = [
        name(path)
        for path in sources(*PACKAGES, "tests")
        if (tree := ast.parse(path.read_text())).body and not ast.get_docstring(tree)
    ]

    assert silent == []


def test_no_module_outgrows_its_noun() -> None:
    """A file that grows without end is the one defect that all the good codebases we looked at share."""
    long = {
        name(path): lines for path in sources(*PACKAGES) if (lines := len(path.read_text().splitlines())) > MOST_LINES
    }

    assert long == {}


def test_the_name_of_a_module_is_unique_within_its_package() -> None:
    """A noun lies in one room; `routes`, `tables` and their like are found by the room."""
    conventional = {"__init__", "__main__", "routes", "schemas", "queries", "tables", "base", "loop"}
    for package in ("api", "jobs", "workers"):
        names = Counter(path.stem for path in sources(package) if path.stem not in conventional)

        assert [name for name, count in names.items() if count > 1] == [], package


def test_no_module_sleeps_uninterruptibly() -> None:
    """A sleeping thread can't be stopped: wait on an Event. (ruff bans the name; this finds it under other names.)"""
    sleepers = [
        f"{name(path)}:{node.lineno}"
        for path in sources(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.module == "time" and any(a.name == "sleep" for a in node.names))
        or (isinstance(node, ast.Attribute) and node.attr == "sleep" and ast.unparse(node.value) in {"time", "_time"})
    ]

    assert sleepers == []


def test_states_are_moved_by_their_ledger_alone() -> None:
    """Elsewhere the guard, the audit row and the event would be forgotten."""
    elsewhere = [
        f"{name(path)}:{line}"
        for path in sources(*PACKAGES)
        if name(path) not in STATE_WRITERS | OTHER_STATES
        for line in state_writes(ast.parse(path.read_text()))
    ]

    assert elsewhere == []


@pytest.mark.parametrize(
    "code",
    [
        "job.state = x",
        "job.state: str = x",
        "a, job.state = x",
        "update(Job).values(state=x)",
        "q.values({'state': x})",
    ],
)
def test_state_rule_detects_each_form_of_write(code: str) -> None:
    assert list(state_writes(ast.parse(code))) == [1]


@pytest.mark.parametrize("code", ["x = job.state", "f(state=x)", "select(Job.state)", "values(done=1)", "state = 1"])
def test_the_rule_about_states_lets_readers_be(code: str) -> None:
    assert list(state_writes(ast.parse(code))) == []


def state_writes(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store):
            yield node.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values":
            keywords = [keyword.arg for keyword in node.keywords]
            keys = [
                key.value
                for argument in node.args
                if isinstance(argument, ast.Dict)
                for key in argument.keys
                if isinstance(key, ast.Constant)
            ]
            if "state" in keywords + keys:
                yield node.lineno


def test_no_file_contains_machine_specific_path() -> None:
    """Refuse paths that exist on one machine only."""
    found = [
        f"{name(path)}: {match.group()}"
        for path in tracked()
        if (text := readable(path)) is not None
        for pattern in MACHINE_PATHS
        if (match := pattern.search(text))
    ]

    assert found == []


def readable(path: Path) -> str | None:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return None


def test_the_constraints_name_no_index_and_no_folder() -> None:
    for lock in (*ROOT.glob("constraints*.txt"), *(ROOT / "tests" / "sdk").rglob("*.txt")):
        lines = lock.read_text().splitlines()[1:]

        assert [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+(\[[a-z0-9,_-]+\])?==[\w.!+]+", line)] == []


def test_the_lock_file_of_node_names_no_registry() -> None:
    """Check that the lock file names no registry: npm records where each package was found, unless told not to."""
    lock = (ROOT / "tests" / "sdk" / "node" / "package-lock.json").read_text()

    assert "integrity" in lock
    assert "resolved" not in lock
    assert "://" not in lock
