"""A grader is one module: nothing else tells its type apart, and to add one touches no other file of the product."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.evals.graders import TYPES
from tests.architecture.count import ROOT, Tree

MOST_TYPE_TESTS = 8
CLASSES = {grader.__name__ for grader in TYPES.values()}


def type_tests(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that tell a grader's type apart: by its class, or by the word for it."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
                names = {name.id for name in ast.walk(kinds) if isinstance(name, ast.Name)}
                yield from [node.lineno] * bool(names & CLASSES)
            case ast.MatchClass(cls=ast.Name(id=name)) if name in CLASSES:
                yield node.cls.lineno
            case ast.Compare(left=left, comparators=[right]) if "type" in (ast.unparse(left), *_last_names(left)):
                words = {word.value for word in ast.walk(right) if isinstance(word, ast.Constant)}
                yield from [node.lineno] * bool(words & TYPES.keys())


def _last_names(node: ast.expr) -> tuple[object, ...]:
    match node:
        case ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=name)):
            return (name,)
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=name), *_]):
            return (name,)
    return ()


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("isinstance(grader, RegexMatch | Ranking)", 1),
        ("isinstance(grader, (str, RegexMatch))", 1),
        ("match grader:\n case RegexMatch(): pass\n case Ranking(k=1): pass", 2),
        ("definition['type'] == 'multi'", 1),
        ("grader.type in ('multi', 'regex')", 1),
        ("grader.get('type') != 'python'", 1),
        ("isinstance(grader, str) or grader.type == 'magic' or word == 'multi'", 0),
    ],
)
def test_the_count_sees_each_way_to_tell_types_apart(code: str, count: int) -> None:
    assert len(list(type_tests(ast.parse(code)))) == count


def test_number_of_grader_type_checks_is_bounded() -> None:
    found = [f"{path}:{line}" for path, tree in Tree(ROOT).parsed.items() for line in type_tests(tree)]

    assert len(found) <= MOST_TYPE_TESTS, found


GRADER = '''
from typing import ClassVar, Literal
from jobs.evals.graders.base import GradingCase, Template, Thresholded, Values

class Length(Thresholded):
    """Compare the lengths of two texts."""
    limits: ClassVar[str] = "any length"
    kind_field: ClassVar[str] = "type"
    type: Literal["length"]
    input: Template
    reference: Template

    def score(self, case: GradingCase) -> tuple[float, Values]:
        return float(len(case.render(self.input)) >= len(case.render(self.reference))), {}
'''
#: Import the package with a folder more, as if the new module stood beside the others; then ask all that list types.
ASK = """if True:
    import importlib.util, json, runpy, sys
    spec = importlib.util.find_spec("jobs.evals.graders")
    spec.submodule_search_locations.append(sys.argv[1])
    package = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    sys.modules["jobs.evals"].graders = package

    from api import openapi
    from api.evals.schemas import CreateEval
    from cli.commands.evals import graders_of
    from jobs.evals.grading import grade

    [definition] = graders_of("long=length>=0.7:{{ item.answer }}")
    several = {"type": "multi", "name": "m", "graders": {"a": definition}, "calculate_output": "2 * a"}
    config = {"type": "custom", "item_schema": {}}
    body = CreateEval.model_validate({"data_source_config": config, "testing_criteria": [definition, several]})
    item, sample = {"answer": "four"}, {"output_text": "eleven"}
    print(json.dumps({
        "scores": [grade(grader, item, sample, {}).score for grader in body.testing_criteria],
        "threshold": body.testing_criteria[0].threshold,
        "api": "length" in json.dumps(openapi.document()["components"]["schemas"]["CreateEval"]),
        "docs": "| `length` | Compare the lengths" in runpy.run_path("docs/generate.py")["pages"]()["graders.md"],
    }))
"""


def test_new_grader_needs_only_its_module(tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(GRADER)

    command = [sys.executable, "-c", ASK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"scores": [1.0, 2.0], "threshold": 0.7, "api": True, "docs": True}
