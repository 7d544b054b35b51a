"""Bring files into vectors with LlamaIndex; `bench ingest` runs this in an environment that has LlamaIndex.

    SimpleDirectoryReader ─▶ SentenceSplitter ─▶ HuggingFaceEmbedding ─▶ SimpleVectorStore, in memory

LlamaIndex's defaults are used, except where the comparison would be unequal: chunks are counted in the model's own
tokens, metadata are not embedded, HTML is read by its HTML reader (the default embeds the tags), and a document store
lets a second run skip what is unchanged.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from llama_index.core import SimpleDirectoryReader
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.readers.file import HTMLTagReader, PDFReader
from tokenizers import Tokenizer

_WARM = "A sentence, so that the model has run once."


class Clocked(TransformComponent):
    """A step of the pipeline, and the seconds it has taken."""

    step: Any
    seconds: float = 0.0
    made: int = 0

    def __call__(self, nodes: Any, **options: Any) -> Any:
        began = time.monotonic()
        out = self.step(nodes, **options)
        self.seconds += time.monotonic() - began
        self.made += len(out)
        return out


def main(folder: str, model: str, tokens: str, overlap: str) -> None:
    split, embed = Clocked(step=_splitter(model, int(tokens), int(overlap))), Clocked(step=_embedding(model))
    pipeline = IngestionPipeline(
        transformations=[split, embed],
        vector_store=SimpleVectorStore(),
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
        disable_cache=True,  # the document store skips unchanged documents already
    )
    before, began = time.process_time(), time.monotonic()
    documents = _read(folder)
    read = time.monotonic() - began
    pipeline.run(documents=documents)
    whole = time.monotonic() - began
    figures = {
        "parse": read + split.seconds,
        "embed": embed.seconds,
        "index": whole - read - split.seconds - embed.seconds,
        "whole": whole,
        "cpu": time.process_time() - before,
        "chunks": split.made,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    began = time.monotonic()
    pipeline.run(documents=_read(folder))
    assert split.made == figures["chunks"]
    print(json.dumps({**figures, "again": time.monotonic() - began}))


def _read(folder: str) -> list[Document]:
    reader = SimpleDirectoryReader(
        folder,
        file_metadata=lambda path: {"file_name": Path(path).name},  # LlamaIndex does not embed this field
        filename_as_id=True,
        file_extractor={".html": HTMLTagReader(tag="body"), ".pdf": PDFReader()},
    )
    return list(reader.load_data())


def _splitter(model: str, tokens: int, overlap: int) -> SentenceSplitter:
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return SentenceSplitter(
        chunk_size=tokens,
        chunk_overlap=overlap,
        tokenizer=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        include_metadata=False,
    )


def _embedding(model: str) -> HuggingFaceEmbedding:
    embedding = HuggingFaceEmbedding(model_name=model)
    embedding.get_text_embedding_batch([_WARM])
    return embedding


if __name__ == "__main__":
    main(*sys.argv[1:])
