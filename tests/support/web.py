"""A web process for tests: a real database and storage in a folder, in process or behind a real socket."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from api.app import build
from api.server import Server, server
from jobs.clock import now
from jobs.db.engine import Database
from jobs.ids import new_id
from jobs.inference import responses, stored
from jobs.inference.stored import StoredAnswer, encode
from jobs.inference.tables import StoredCompletion, StoredResponse
from jobs.platform.storage import Storage
from jobs.requests.endpoints import CHAT, RESPONSES
from jobs.security import keys
from jobs.security.keys import create_key
from jobs.settings import Settings
from jobs.timings import Timings


@contextmanager
def running_app(folder: Path, database_url: str, timings: Timings = Timings(), **settings: Any) -> Iterator[FastAPI]:
    """Yield the app over a migrated database."""
    given = {"data_dir": folder, "database_url": database_url, "min_free_bytes": 0, **settings}
    app = build(Settings(**given), timings)
    yield app
    app.state.services.db.close()


def hurry(app: FastAPI, **seconds: float) -> None:
    """Have a process that runs wait for other times."""
    app.state.services.timings = replace(app.state.services.timings, **seconds)


def make_key(app: FastAPI, project: str = "default", *, manages: bool = False) -> str:
    """Create a key of a project, and the project when it is new."""
    with app.state.services.db.write() as session:
        return create_key(session, project, manages=manages)


def store_completion(app: FastAPI, project: str = "default", **facts: Any) -> str:
    """Store a chat completion as if it had been answered."""
    return keep_completion_in(app.state.services.db, app.state.services.storage, project, **facts)


def keep_completion_in(db: Database, storage: Storage, project: str, *, said: str = "Hi", **facts: Any) -> str:
    """Store a chat completion without an app."""
    name = new_id(stored.COMPLETION_PREFIX)
    row = {"id": name, "requested_model": "m", "model": "m", "created_at": now(), "expires_at": now() + 3600, **facts}
    with db.write() as session:
        session.add(StoredCompletion(**row, project_id=keys.ensure_project(session, project).id))
    question = {"model": row["requested_model"], "messages": [{"role": "user", "content": said}]}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    answer = {"id": name, "model": row["model"], "created": 1, "choices": [choice]}
    storage.put(stored.completion_path(name), encode(CHAT, StoredAnswer(question, answer)))
    return name


def rate_completion(app: FastAPI, client: Any) -> str:
    """Give feedback on a stored chat completion of the default project; return its id."""
    target = {"type": "chat.completion", "completion_id": store_completion(app)}
    return str(client.post("/v1/feedback", json={"target": target, "score": 1}).json()["id"])


def store_response(app: FastAPI, *, said: str = "Hi", **facts: Any) -> str:
    """Store a response as if it had been answered, in the project that `make_key` makes."""
    services, name = app.state.services, new_id("resp_")
    row = {"requested_model": "m", "model": "m", "created_at": now(), "expires_at": now() + 3600, **facts}
    with services.db.write() as session:
        session.add(StoredResponse(id=name, **row, project_id=keys.ensure_project(session, "default").id))
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    text = {"type": "output_text", "text": "Hello", "annotations": []}
    question = {"input": [{"role": "user", "content": said}]}
    answer = {"id": name, "object": "response", "model": row["model"], "created_at": row["created_at"]}
    stored_answer = StoredAnswer(question, answer | {"output": [message | {"content": [text]}]})
    services.storage.put(responses.path(name), encode(RESPONSES, stored_answer))
    return name


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Serve the app on a real socket in a thread, and yield its URL."""
    with served(server(app, app.state.services.config)) as url:
        yield url


@contextmanager
def served(web: Server) -> Iterator[str]:
    """Run a server on a real socket in a thread, and yield its URL; in the end, end also what it answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    pause = threading.Event()
    while not web.started and thread.is_alive():
        pause.wait(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        web.services.stopping.set()
        web.handle_exit(signal.SIGTERM, None)
        thread.join(30)
        listener.close()
