"""Bring documents into a vector store, and answer questions from them with their sources."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from openai import OpenAI
from openai.types import StaticFileChunkingStrategyObjectParam
from openai.types.vector_stores import VectorStoreFileBatch

from cli.demo.library import QUESTIONS, Paper

_MARK = {"made_by": "nightmill demo"}
_SOURCES = 3


@dataclass(frozen=True, slots=True)
class Source:
    """A file in which an answer was found. `cited`: the answer cites it."""

    filename: str
    cited: bool


@dataclass(frozen=True, slots=True)
class Answered:
    question: str
    text: str
    sources: Sequence[Source]


@dataclass(slots=True)
class DemoStore:
    """A vector store of the demo, and the outcome of bringing papers into it."""

    store_id: str
    papers: Sequence[Paper]
    batch: VectorStoreFileBatch
    seconds: float
    answers: list[Answered] = field(default_factory=list)


def forget_earlier(client: OpenAI) -> None:
    """Delete the store of an earlier demo with its files."""
    for store in client.vector_stores.list(limit=100):
        if store.metadata == _MARK:
            for file in client.vector_stores.files.list(store.id, limit=100):
                client.files.delete(file.id)
            client.vector_stores.delete(store.id)


def begin(client: OpenAI, papers: Sequence[Paper], embedding_model: str) -> tuple[str, VectorStoreFileBatch]:
    """Upload the papers and add them to a new store, through the SDK."""
    store = client.vector_stores.create(
        name="the demo's library", metadata=_MARK, extra_body={"embedding_model": embedding_model}
    )
    ids = [client.files.create(file=(paper.name, paper.data), purpose="user_data").id for paper in papers]
    cut: StaticFileChunkingStrategyObjectParam = {
        "type": "static",
        "static": {"max_chunk_size_tokens": 250, "chunk_overlap_tokens": 25},
    }
    batch = client.vector_stores.file_batches.create(store.id, file_ids=ids, chunking_strategy=cut)
    return store.id, batch


def ask(client: OpenAI, store_id: str, model: str, question: str) -> Answered:
    """Answer one question from the store."""
    response = client.responses.create(
        model=model,
        input=question,
        tools=[{"type": "file_search", "vector_store_ids": [store_id], "max_num_results": _SOURCES}],
        include=["file_search_call.results"],
        max_output_tokens=64,
        temperature=0,
        store=False,
    )
    cited, names = set[str](), list[str]()
    for item in response.output:
        if item.type == "file_search_call":
            names += [result.filename or "" for result in item.results or ()]
        elif item.type == "message":
            cited |= {name for part in item.content for name in _cited(part)}
    sources = [Source(name, name in cited) for name in dict.fromkeys(names)]
    return Answered(question, response.output_text, sources)


def _cited(part: object) -> Iterator[str]:
    for annotation in getattr(part, "annotations", ()):
        if annotation.type == "file_citation":
            yield annotation.filename


def faults(store: DemoStore) -> Iterator[str]:
    """Return what differs from the expected outcome, in words."""
    counts = store.batch.file_counts
    if store.batch.status != "completed" or counts.completed != len(store.papers):
        yield f"library: of {len(store.papers)} documents {counts.completed} came in ({store.batch.status})"
    if len(store.answers) != len(QUESTIONS):
        yield f"library: {len(store.answers)} of {len(QUESTIONS)} questions were answered"
    for answered in store.answers:
        if not answered.text.strip():
            yield f"library: no answer to '{answered.question}'"
        if not answered.sources:
            yield f"library: nothing was found for '{answered.question}'"
