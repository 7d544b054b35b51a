"""The fields of vLLM's request models, read from its source: an import would take 20 seconds."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from tests.support.services import need

CLASSES = {
    CHAT: "ChatCompletionRequest",
    COMPLETIONS: "CompletionRequest",
    RESPONSES: "ResponsesRequest",
    EMBEDDINGS: "EmbeddingCompletionRequest",
}


def fields_of(name: str) -> set[str]:
    """Return the fields of a class of requests; none of a class that vLLM does not have."""
    return _fields(name, _classes())


@cache
def _classes() -> dict[str, ast.ClassDef]:
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        need("vLLM's protocol", ModuleNotFoundError("vllm"))
    folder = Path(found.submodule_search_locations[0]) / "entrypoints"
    trees = [ast.parse(path.read_text()) for path in folder.rglob("protocol.py")]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    if name not in classes:
        return set()
    here = {
        node.target.id
        for node in classes[name].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if not node.target.id.startswith("_") and "ClassVar" not in ast.unparse(node.annotation)
    }
    return here.union(*(_fields(ast.unparse(base), classes) for base in classes[name].bases))
