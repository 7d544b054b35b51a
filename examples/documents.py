"""Bring documents into a vector store, and have a model answer questions from them, with its sources.

    topics and modules of Python's help ─▶ vector store ─▶ a search for each question ─▶ an answer that cites its files

OPENAI_BASE_URL and OPENAI_API_KEY name the server. The store and its files stay until the next run.
"""

import argparse
import importlib
import pydoc
import sys
import time
from pydoc_data import topics
from typing import Any

from openai import OpenAI

TOPICS = ("assert", "booleans", "comparisons", "context-managers", "del", "exceptions", "for", "if", "imaginary",
          "lambda", "lists", "power", "raise", "slicings", "truth", "try", "while", "with", "yield")  # fmt: skip
MODULES = ("bisect", "fnmatch", "getpass", "graphlib", "queue", "secrets", "shlex", "stat", "tomllib")
LONGEST = 6_000  # characters of a topic
QUESTIONS = (
    "What are context managers good for?",
    "Which function makes a random token for a password reset?",
    "What is the difference between lists and tuples?",
)
MARK = {"made_by": "nightmill demo"}
client = OpenAI()


def documents() -> dict[str, bytes]:
    """Return the documents by their names: topics of Python's help as text, pages about modules as HTML."""
    found = {f"{name}.txt": topics.topics[name][:LONGEST].encode() for name in TOPICS if name in topics.topics}
    for name in MODULES:
        page = pydoc.HTMLDoc().page(name, pydoc.HTMLDoc().docmodule(importlib.import_module(name)))
        found[f"{name}.html"] = page.encode()
    return found


def forget_earlier() -> None:
    """Delete the store of an earlier run, with its files."""
    for store in client.vector_stores.list(limit=100):
        if store.metadata == MARK:
            for file in client.vector_stores.files.list(store.id, limit=100):
                client.files.delete(file.id)
            client.vector_stores.delete(store.id)


def fill(found: dict[str, bytes], embedding_model: str) -> str:
    """Upload the documents into a new store, and wait until they can be searched; return the id of the store."""
    extra = {"embedding_model": embedding_model}  # a field of Nightmill's own
    store = client.vector_stores.create(name="the demo's library", metadata=MARK, extra_body=extra)
    ids = [client.files.create(file=entry, purpose="user_data").id for entry in found.items()]
    chunks: Any = {"type": "static", "static": {"max_chunk_size_tokens": 250, "chunk_overlap_tokens": 25}}
    batch = client.vector_stores.file_batches.create(store.id, file_ids=ids, chunking_strategy=chunks)
    print(f"uploaded {len(found)} documents (text, HTML) of this machine's Python into a vector store")
    while batch.status == "in_progress":
        time.sleep(0.5)
        batch = client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
    if batch.status != "completed" or batch.file_counts.completed != len(found):
        sys.exit(f"of {len(found)} documents {batch.file_counts.completed} came in ({batch.status})")
    return store.id


def answer(model: str, store_id: str, question: str) -> tuple[str, dict[str, bool]]:
    """Return the answer to a question, and the files that were found for it, each with whether it is cited."""
    response = client.responses.create(
        model=model,
        input=question,
        tools=[{"type": "file_search", "vector_store_ids": [store_id], "max_num_results": 3}],
        include=["file_search_call.results"],
        max_output_tokens=64,
        temperature=0,
        store=False,
    )
    sources: dict[str, bool] = {}
    for item in response.output:
        if item.type == "file_search_call":
            sources |= {result.filename or "": False for result in item.results or ()}
        elif item.type == "message":
            notes = [note for part in item.content for note in getattr(part, "annotations", ())]
            sources |= {note.filename: True for note in notes if note.type == "file_citation"}
    return response.output_text, sources


def main() -> None:
    parser = argparse.ArgumentParser(description="answer questions from documents")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--embedding-model", default="all-minilm-l6-v2")
    options = parser.parse_args()
    forget_earlier()
    store_id = fill(documents(), options.embedding_model)
    print("asked of the documents (* cited)")
    for question in QUESTIONS:
        text, sources = answer(options.model, store_id, question)
        if not text.strip() or not sources:
            sys.exit(f"no answer with sources to '{question}'")
        shown = "".join(filter(str.isprintable, " ".join(text.split())))
        cited = ", ".join(name + " *" * is_cited for name, is_cited in sources.items())
        print(f"  {question}\n    {shown:.160}\n    {cited}")


if __name__ == "__main__":
    main()
