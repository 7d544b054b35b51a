"""The lineage of a version of a model: the data and models that it comes from, its evaluations, and its aliases.

    files ─┐
    base  ─┼─▶ fine-tuning job ─▶ version ─┬─▶ runs of evals
    parent ┘                               └─▶ aliases

A parent comes with its own lineage, and so on. A parent of another project, which has permitted it, is only named.
"""

from typing import Final, Literal

from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.deps import Call
from api.fleet.models import manifest_of
from api.http.bodies import resource
from api.registry.model_versions import Name, get_version
from jobs.ledger.tables import Job
from jobs.registry import aliases, model_versions, models
from jobs.registry.tables import TunedModel

router = resource("Model versions", area="model_versions")

MAX_GENERATIONS: Final = 20
MAX_ALIASES: Final = 100  # of a version


class LineageNode(BaseModel):
    """A thing in a lineage. `status` is the state of a job or a model, `stage` that of a version.

    `sha256` is that of the rows that were read of a file, of the weights of a base, or of the manifest of a model. The
    rows of a file have it as their id, and the file as their name.
    """

    id: str
    type: Literal[
        "file", "model", "fine_tuning.job", "model.import", "model.version", "checkpoint", "eval.run", "model.alias"
    ]
    name: str | None = None
    sha256: str | None = None
    status: str | None = None
    stage: str | None = None


class LineageEdge(BaseModel):
    """One thing that came of another, or that names it."""

    source: str
    target: str
    relation: Literal["training", "validation", "general", "base", "parent", "result", "evaluation", "alias"]


class Lineage(BaseModel):
    """The things that a version comes from and that were made of it. `truncated`: there are more than are shown."""

    object: Literal["model.lineage"] = "model.lineage"
    model: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    truncated: bool


class _Graph:
    """A lineage that grows. A thing that is met again is the same node."""

    def __init__(self) -> None:
        self.nodes: dict[str, LineageNode] = {}
        self.edges: list[LineageEdge] = []
        self.truncated = False

    def add(self, node: LineageNode) -> None:
        self.nodes.setdefault(node.id, node)

    def link(self, source: str, target: str, relation: str) -> None:
        self.edges.append(LineageEdge.model_validate({"source": source, "target": target, "relation": relation}))


@router.get("/model_versions/{model_version:path}/lineage")
def retrieve_lineage(call: Call, model_version: Name) -> Lineage:
    """Return what a version comes from, 20 generations at most, its evaluations and its aliases."""
    graph = _Graph()
    with call.db.read() as session:
        name: str | None = get_version(session, call, model_version).model
        for _ in range(MAX_GENERATIONS):
            if name is not None:
                name = _add_model(session, graph, name, call.project_id)
    graph.truncated = graph.truncated or name is not None
    nodes = list(graph.nodes.values())
    return Lineage(model=model_version, nodes=nodes, edges=graph.edges, truncated=graph.truncated)


def _add_model(session: Session, graph: _Graph, name: str, project_id: str) -> str | None:
    """Add a tuned model with its job, data, runs and aliases; return its parent, if it has one that is to be added."""
    tuned = models.find_any(session, name, project_id)
    if tuned is None or tuned.project_id != project_id:
        graph.add(LineageNode(id=name, type="checkpoint"))
        return None
    manifest, version = manifest_of(session, tuned), model_versions.find(session, name, project_id)
    shown = {"id": name, "sha256": tuned.sha256, "status": tuned.state}
    if version is not None:
        shown |= {"name": f"{version.family} {version.number}", "stage": version.stage}
    graph.add(LineageNode.model_validate(shown | {"type": "checkpoint" if version is None else "model.version"}))
    job = session.get(Job, tuned.job_id)
    made_by = LineageNode(id=tuned.job_id, type="fine_tuning.job", status=job.state if job is not None else None)
    graph.add(made_by if manifest.model_import is None else made_by.model_copy(update={"type": "model.import"}))
    graph.link(tuned.job_id, name, "result")
    base = manifest.run.get("base") or {}
    graph.add(LineageNode(id=tuned.base, type="model", sha256=base.get("sha256")))
    graph.link(tuned.base, tuned.job_id, "base")
    for data in manifest.data:
        rows = data.sha256 or data.file_id
        graph.add(LineageNode(id=rows, type="file", name=data.file_id, sha256=data.sha256))
        graph.link(rows, tuned.job_id, data.role)
    for run in manifest.evaluations:
        graph.add(LineageNode(id=run.id, type="eval.run", name=run.name))
        graph.link(name, run.id, "evaluation")
    _add_aliases(session, graph, tuned)
    if manifest.parent is not None:
        graph.link(manifest.parent, tuned.job_id, "parent")
    return None if manifest.parent in graph.nodes else manifest.parent


def _add_aliases(session: Session, graph: _Graph, tuned: TunedModel) -> None:
    """Add the aliases that have a model among their targets or fallbacks."""
    own = aliases.aliases_of(session, tuned.project_id)
    names = [alias.name for alias in own if tuned.name in aliases.routing_of(alias).models]
    graph.truncated = graph.truncated or len(names) > MAX_ALIASES
    for name in names[:MAX_ALIASES]:
        graph.add(LineageNode(id=name, type="model.alias"))
        graph.link(tuned.name, name, "alias")
