"""Names follow the grammar: what acts has a verb, what returns a noun; a class has one meaning; limits are `MAX_`.

Three counts of names that break it. Each has a ceiling that may only fall: lower the constant with the names. Names of
tests have a subject and an outcome, and no pronoun that hides them.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from tests.architecture.count import ROOT, Tree

MAX_PARTICIPLES = 141
MAX_SHARED_CLASS_NAMES = 5
MAX_SUPERLATIVES = 0
#: A count this far below its ceiling fails too, so that the ceiling follows the code.
SLACK = 20

#: Words in -ed that are no participles.
NO_PARTICIPLE = re.compile(r"bed|embed|exceed|feed|need|proceed|red|seed|shed|speed|succeed")
#: Participles without -ed that are no imperatives (`run`, `set` and `read` are both).
IRREGULAR = re.compile(
    r"begun|bent|born|bought|broken|brought|built|caught|chosen|dealt|done|drawn|driven|fallen|felt|found|frozen|given"
    r"|gone|grown|held|hidden|hung|kept|known|laid|led|left|lent|lost|made|meant|met|paid|said|seen|sent|shaken|shown"
    r"|slept|sold|spent|spoken|stood|swept|taken|thought|thrown|told|torn|understood|woken|won|written"
)
#: Names that a library calls.
CALLBACKS = re.compile(r"connection_lost|on_\w+")
#: Words that hide the subject or the outcome of a test. A one-off webhook is a term.
VAGUE = frozenset(
    {
        *(
            "again",
            "anew",
            "anybody",
            "away",
            "beside",
            "elsewhere",
            "few",
            "gone",
            "held",
            "kept",
            "nobody",
            "one",
            "said",
        ),
        *("somebody", "them", "they", "told", "what", "whatever", "when", "wherever", "who", "whoever", "whose"),
    }
)
SUPERLATIVES = re.compile(r"(MOST|LONGEST|LARGEST|LEAST|FEWEST|SHORTEST)_\w+")


def participles(tree: ast.AST) -> Iterator[str]:
    """Yield the functions whose first or last word is a participle, but for those that return a bool."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or CALLBACKS.fullmatch(node.name):
            continue
        words = node.name.strip("_").split("_")
        is_boolean = node.returns is not None and re.match(r"bool$|Type(Guard|Is)\[", ast.unparse(node.returns))
        if not is_boolean and (_is_participle(words[0]) or _is_participle(words[-1])):
            yield node.name


def _is_participle(word: str) -> bool:
    if word.endswith("ed"):
        return not NO_PARTICIPLE.fullmatch(word)
    return bool(IRREGULAR.fullmatch(word))


def shared_class_names(trees: Iterable[ast.Module]) -> Iterator[str]:
    """Yield the public class names that stand in more than one module."""
    modules = Counter(
        name
        for tree in trees
        for name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        if not name.startswith("_")
    )
    return (name for name, count in modules.items() if count > 1)


def superlatives(tree: ast.Module) -> Iterator[str]:
    """Yield the public constants of a module that name a limit by a superlative."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (name.id for name in targets if isinstance(name, ast.Name) and SUPERLATIVES.fullmatch(name.id))


def vague_tests(tree: ast.Module) -> Iterator[str]:
    """Yield the tests whose name has a vague word."""
    for node in ast.walk(tree):
        is_test = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if is_test and VAGUE & set(node.name.replace("one_off", "").split("_")):
            yield node.name


@pytest.fixture(scope="module")
def modules() -> list[ast.Module]:
    return list(Tree(ROOT).parsed.values())


def check(names: Iterable[str], ceiling: int) -> None:
    found = sorted(names)
    assert len(found) <= ceiling, f"{len(found)} names, at most {ceiling}: {found}"
    assert len(found) > ceiling - SLACK, f"{len(found)} names are left: lower the constant from {ceiling}"


def test_functions_are_not_named_by_participles(modules: list[ast.Module]) -> None:
    check([name for tree in modules for name in participles(tree)], MAX_PARTICIPLES)


def test_public_class_name_stands_in_a_single_module(modules: list[ast.Module]) -> None:
    check(shared_class_names(modules), MAX_SHARED_CLASS_NAMES)


def test_limits_are_not_named_by_superlatives(modules: list[ast.Module]) -> None:
    check([name for tree in modules for name in superlatives(tree)], MAX_SUPERLATIVES)


def test_names_of_tests_have_subject_and_outcome() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]

    assert [name for tree in trees for name in vague_tests(tree)] == []


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("def _shown(x): ...", ["_shown"]),
        ("class A:\n async def closed_now(self) -> None: ...", ["closed_now"]),
        ("def lines_of_ended() -> list[bool]: ...", ["lines_of_ended"]),
        ("def is_closed(x) -> bool: ...\ndef _named(x) -> TypeGuard[str]: ...", []),
        ("def feed(): ...\ndef _embed(): ...\ndef read_all(): ...\ndef run_ended_jobs(): ...", []),
        ("def connection_lost(self): ...\ndef on_chunk_received(self): ...", []),
    ],
)
def test_participles_are_counted(code: str, names: list[str]) -> None:
    assert list(participles(ast.parse(code))) == names


def test_shared_class_names_are_counted() -> None:
    first, second = "class Job: ...\nclass _Row: ...\nclass Only: ...", "class Job: ...\nclass _Row: ..."

    assert list(shared_class_names(map(ast.parse, (first, second)))) == ["Job"]


def test_superlatives_are_counted() -> None:
    code = "MOST_LINES = 1\nLONGEST_ID: Final = 2\n_MOST_X = 3\nMAX_Y = MOST_LINES\ndef f(): MOST_Z = 4"

    assert list(superlatives(ast.parse(code))) == ["MOST_LINES", "LONGEST_ID"]


def test_vague_names_of_tests_are_found() -> None:
    code = "def test_who_waits(): ...\nclass A:\n async def test_it_is_told(self): ...\ndef test_one_off_webhook(): ..."

    assert list(vague_tests(ast.parse(code))) == ["test_who_waits", "test_it_is_told"]


@pytest.mark.parametrize("count", [10, 31])
def test_a_count_may_neither_pass_its_ceiling_nor_fall_far_below(count: int) -> None:
    with pytest.raises(AssertionError):
        check(["name"] * count, 30)
