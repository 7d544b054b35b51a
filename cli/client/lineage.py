"""The drawing of a lineage in the terminal: what a version comes from, and what was made of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Edge = tuple[str, str]  # the id of a node, and its relation


def draw_lineage(shown: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines of a drawing of what `GET /v1/model_versions/{id}/lineage` returns."""
    nodes = {node["id"]: node for node in shown["nodes"]}
    sources: dict[str, list[Edge]] = {}
    targets: list[Edge] = []
    for edge in shown["edges"]:
        sources.setdefault(edge["target"], []).append((edge["source"], edge["relation"]))
        if edge["source"] == shown["model"]:
            targets.append((edge["target"], edge["relation"]))
    yield _describe(nodes[shown["model"]])
    yield "  comes from"
    yield from _tree(shown["model"], nodes, sources)
    if targets:
        yield "  led to"
    for target, relation in targets:
        yield f"    {relation}: {_describe(nodes[target])}"
    if shown["truncated"]:
        yield "  and more, which are not shown"


def _tree(root: str, nodes: Mapping[str, Any], sources: Mapping[str, Sequence[Edge]]) -> Iterator[str]:
    """Draw each node once, with its sources; where it is met again, draw it without them."""
    seen = set[str]()
    waiting = [(*edge, 2) for edge in reversed(sources.get(root, ()))]
    while waiting:
        node_id, relation, depth = waiting.pop()
        again = node_id in seen and node_id in sources
        yield f"{'  ' * depth}{relation}: {_describe(nodes[node_id])}{' (see above)' if again else ''}"
        if not again:
            waiting += [(*edge, depth + 1) for edge in reversed(sources.get(node_id, ()))]
        seen.add(node_id)


def _describe(node: Mapping[str, Any]) -> str:
    if node["type"] == "file":
        return f"{node['name']}, rows {node['id'][:12]}"
    facts = [node[name] for name in ("status", "stage") if node[name]]
    facts += [f"SHA-256 {node['sha256'][:12]}"] if node["sha256"] else []
    name = f" ({node['name']})" if node["name"] else ""
    return f"{node['id']}{name}{': ' if facts else ''}{', '.join(facts)}"
