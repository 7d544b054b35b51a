"""A LangChain application against a running server: plain Python that runs in an environment of its own.

    python langchain_flow.py '{"url": …, "key": …, "chat": …, "own": …, "alias": …, "texts": {…}, "question": …}'

It prints one JSON object: what each step gave.
"""

import json
import sys
from typing import Any

import openai
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

FACTS: dict[str, Any] = json.loads(sys.argv[1])
TEXTS: dict[str, str] = FACTS["texts"]
server: dict[str, Any] = {"base_url": f"{FACTS['url']}/v1", "api_key": FACTS["key"]}
client = openai.OpenAI(**server)


def nearest(embeddings: OpenAIEmbeddings) -> str:
    """Return the name of the text that LangChain's own vector store finds."""
    store = InMemoryVectorStore(embeddings)
    store.add_documents([Document(text, metadata={"name": name}) for name, text in TEXTS.items()])
    return str(store.similarity_search(FACTS["question"], k=1)[0].metadata["name"])


def searched() -> tuple[str, str]:
    """Return the file that a vector store of the server finds, and its text."""
    store = client.vector_stores.create(name="langchain")
    files = [(name, text.encode()) for name, text in TEXTS.items()]
    client.vector_stores.file_batches.upload_and_poll(store.id, files=files, poll_interval_ms=200)
    found = client.vector_stores.search(store.id, query=FACTS["question"]).data[0]
    return found.filename, found.content[0].text


def main() -> None:
    defaults = OpenAIEmbeddings(model=FACTS["alias"], **server)
    own = OpenAIEmbeddings(model=FACTS["own"], check_embedding_ctx_length=False, **server)
    texts = list(TEXTS.values())
    plain = client.embeddings.create(model=FACTS["own"], input=texts)
    filename, context = searched()
    prompt = ChatPromptTemplate.from_messages([("system", "Answer from: {context}"), ("user", "{question}")])
    chain = prompt | ChatOpenAI(model=FACTS["chat"], **server)
    given = {"context": context, "question": FACTS["question"]}
    said = {
        "plain": [one.embedding for one in plain.data],
        "by defaults": defaults.embed_documents(texts),
        "by the model's own name": own.embed_documents(texts),
        "nearest": nearest(defaults),
        "searched": filename,
        "answer": chain.invoke(given).content,
        "streamed": [chunk.content for chunk in chain.stream(given)],
    }
    print(json.dumps(said))


main()
