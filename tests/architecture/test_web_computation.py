"""What computes on clients' data runs in child processes of the API, and never in the web process itself.

One interpreter answers everybody: a text metric that holds it for ten seconds is ten seconds for every project.
"""

import ast
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

#: Names that compute on clients' data, with all that is below them, and why `api` may not use them.
FORBIDDEN: Final[Mapping[str, str]] = {
    "jobs.evals.*.grade": "grades: text metrics, patterns and templates of clients",
    "jobs.evals.*.requests": "renders templates, each up to megabytes",
    "jobs.evals.*.requests_of": "renders templates, each up to megabytes",
    "jobs.evals.*.chat_messages": "renders templates, each up to megabytes",
    "jobs.evals.templates.render": "renders templates, each up to megabytes",
    "jobs.evals.templates.value_of": "renders templates, each up to megabytes",
    "jobs.evals.*text_metrics": "is quadratic in two texts",
    "jobs.evals.*patterns": "compiles and searches regular expressions of clients",
    "jobs.evals.*formulas": "evaluates formulas of clients",
    "jobs.evals.*grounding": "compares words of texts",
    "jobs.evals.classification": "counts over all items of a run",
    "jobs.evals.comparison.[a-z]*": "resamples all scores of two runs",
    "jobs.evals.significance": "resamples all scores of two runs",
    "jobs.batches.exports": "converts results of any size",
    "jobs.batches.validate": "reads a whole file",
    "jobs.finetuning.examples.check": "reads rows of training files",
    "jobs.retrieval.metrics": "measures rankings",
    "jobs.retrieval.words": "splits texts into words",
    **dict.fromkeys(("regex", "rapidfuzz", "nltk", "difflib"), "holds the interpreter over texts of clients"),
    **dict.fromkeys(("tokenizers", "transformers", "bpe_openai", "sentencepiece"), "splits texts into tokens"),
    **dict.fromkeys(("jinja2", "jsonschema"), "runs what a client has written, for as long as it takes"),
    **dict.fromkeys(("numpy", "scipy", "pyarrow"), "computes, and is loaded by nothing else in the web process"),
    **dict.fromkeys(("subprocess", "multiprocessing"), "starts processes beside `jobs.platform.children`"),
}

#: Uses that stay in the web process, by module and name, each with its bound.
ALLOWED: Final[Mapping[tuple[str, str], str]] = {
    ("api/jobs/results.py", "jobs.batches.exports"): "converts some rows at a time, in a thread of the project",
    ("api/retrieval/indexes.py", "jobs.retrieval.metrics"): "compares lists of at most 50 files",
}

#: Functions that run a child: only in a slot of the project (`with ….computations.slot(…)`).
SHARED_OUT: Final = (
    "jobs.platform.children.run",
    "jobs.evals.grading_process.ask",
    "jobs.evals.comparison_process.compare",
    "jobs.evals.source_process.check",
    "jobs.finetuning.examination.examine",
)

_PATTERNS: Final = ("compile", "search", "match", "fullmatch", "split", "sub", "subn", "findall", "finditer")


def names_of(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield each import and each use of something imported, with its full name."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                imported[alias.asname or alias.name] = before + alias.name
                yield node, before + alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            written = ast.unparse(node)
            for name, full in imported.items():
                if written == name or written.startswith(f"{name}."):
                    yield node, full + written.removeprefix(name)


def is_below(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def faults(code: str, module: str = "") -> set[str]:
    """Return what a module of `api` does that it may not."""
    tree = ast.parse(code)
    slots = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(ast.unparse(item.context_expr).partition("(")[0].endswith("computations.slot") for item in node.items)
    ]
    shared_out = {id(node) for slot in slots for node in ast.walk(slot)}
    found = set[str]()
    for node, name in names_of(tree):
        for forbidden, reason in FORBIDDEN.items():
            if is_below(name, forbidden) and (module, forbidden) not in ALLOWED:
                found.add(f"{forbidden} {reason}")
        if isinstance(node, ast.expr) and name in SHARED_OUT and id(node) not in shared_out:
            found.add(f"{name} outside of a slot of the project")
    return found | {
        f"{ast.unparse(call.func)} takes a pattern that is no literal"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in {f"re.{name}" for name in _PATTERNS}
        and not isinstance(call.args[0], ast.Constant | ast.JoinedStr)
    }


def test_the_web_process_computes_nothing_on_clients_data() -> None:
    modules = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "api").rglob("*.py"))}

    assert {module: found for module, code in modules.items() if (found := faults(code, module))} == {}


def test_each_exception_is_still_needed() -> None:
    for module, forbidden in ALLOWED:
        names = [name for _, name in names_of(ast.parse((ROOT / module).read_text()))]
        assert any(is_below(name, forbidden) for name in names), f"{module} no longer uses {forbidden}"


@pytest.mark.parametrize(
    "code",
    [
        "from jobs.evals.grading import grade",
        "from jobs.evals import grading\ngrading.grade(g, {}, {}, {})",
        "import jobs.evals.grading as grading\ngrading.requests_of(g, {}, {})",
        "import jobs.evals.grading\njobs.evals.grading.grade(g, {}, {}, {})",
        "from jobs.evals import text_metrics",
        "from jobs.evals.text_metrics import similarity",
        "def f():\n    import regex",
        "import tokenizers",
        "from jinja2 import Template",
        "import re\nre.search(body.pattern, text)",
        "import subprocess",
        "from jobs.finetuning import examination\nexamination.examine(question)",
        "from jobs.finetuning.examination import examine\nrun_in_threadpool(examine, question)",
        "from jobs.platform import children\nwith lock:\n    children.run('m', [], limits)",
    ],
)
def test_the_rule_sees_each_way_to_compute(code: str) -> None:
    assert faults(code)


@pytest.mark.parametrize(
    "code",
    [
        "from jobs.evals.grading import Grade\nfrom jobs.evals.comparison import PairedComparison",
        "import re\nre.compile('[a-z]+')",
        "from jobs.finetuning import examination as e\nwith services.computations.slot(project):\n    e.examine(q)",
    ],
)
def test_the_rule_lets_definitions_and_shared_out_children_be(code: str) -> None:
    assert not faults(code)
