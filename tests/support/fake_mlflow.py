"""The part of MLflow's REST interface that trainings and versions of models are sent to, in memory.

`tests/sdk` has the real server.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class FakeMlflow(ThreadingHTTPServer):
    """Its runs. `lose` drops the connection of the next request to a path after the request counted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.experiments: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.aliases: dict[str, dict[str, str]] = {}
        self.versions: list[dict[str, Any]] = []
        self.authorization: set[str | None] = set()
        self.status = 200
        self.lose = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def steps(self, key: str = "train/loss") -> list[int]:
        """Return the steps of a metric of the only run, in the order in which they came."""
        (run,) = self.runs
        return [metric["step"] for metric in run["metrics"] if metric["key"] == key]

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer to a request, None where it names nothing that there is."""
        if path == "experiments/get-by-name":
            name = body["experiment_name"]
            known = name in self.experiments
            return {"experiment": {"experiment_id": str(self.experiments.index(name))}} if known else None
        if path == "experiments/create":
            self.experiments.append(body["name"])
            return {"experiment_id": str(len(self.experiments) - 1)}
        if path == "runs/search":
            return {
                "runs": [_shown(run) for run in self.runs if f"'{run['tags']['nightmill_job_id']}'" in body["filter"]]
            }
        if path == "runs/create":
            tags = {tag["key"]: tag["value"] for tag in body["tags"]}
            self.runs.append(
                {"id": f"run{len(self.runs)}", "tags": tags, "metrics": [], "params": {}, "status": "RUNNING"}
            )
            return {"run": _shown(self.runs[-1])}
        if path.startswith(("registered-models/", "model-versions/")):
            return self._answer_registry(path, body)
        run = next(run for run in self.runs if run["id"] == body["run_id"])
        if path == "runs/log-batch":
            run["metrics"] += body.get("metrics", [])
            run["params"] |= {param["key"]: param["value"] for param in body.get("params", [])}
        elif path == "runs/update":
            run["status"] = body["status"]
        return {"run": _shown(run)}

    def _answer_registry(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer about registered models, whose versions count from 1 in each."""
        name = body.get("name", "")
        if path == "registered-models/get":
            held = [{"alias": alias, "version": number} for alias, number in self.aliases.get(name, {}).items()]
            return {"registered_model": {"name": name, "aliases": held}} if name in self.aliases else None
        if path == "registered-models/create":
            self.aliases[name] = {}
        elif path == "registered-models/alias":
            self.aliases[name] |= {body["alias"]: body["version"]}
        elif path == "registered-models/alias/delete":
            del self.aliases[name][body["alias"]]
        elif path == "model-versions/search":
            same = [version for version in self.versions if f"'{version['tags']['nightmill_id']}'" in body["filter"]]
            return {"model_versions": [_shown_version(version) for version in same]}
        elif path == "model-versions/create":
            number = 1 + sum(version["name"] == name for version in self.versions)
            tags = {tag["key"]: tag["value"] for tag in body["tags"]}
            self.versions.append({"name": name, "version": str(number), "run_id": body.get("run_id"), "tags": tags})
            return {"model_version": _shown_version(self.versions[-1])}
        elif path == "model-versions/set-tag":
            key = (name, body["version"])
            version = next(version for version in self.versions if (version["name"], version["version"]) == key)
            version["tags"][body["key"]] = body["value"]
        return {}


def _shown_version(version: dict[str, Any]) -> dict[str, Any]:
    return {**version, "tags": [{"key": key, "value": value} for key, value in version["tags"].items()]}


def _shown(run: dict[str, Any]) -> dict[str, Any]:
    latest = {metric["key"]: metric for metric in sorted(run["metrics"], key=lambda metric: metric["step"])}
    return {"info": {"run_id": run["id"]}, "data": {"metrics": list(latest.values())}}


class _Handler(BaseHTTPRequestHandler):
    server: FakeMlflow

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self._answer({name: values[0] for name, values in query.items()})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_DELETE(self) -> None:
        self.do_POST()

    def _answer(self, body: dict[str, Any]) -> None:
        server, path = self.server, urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/")
        path += "/delete" if self.command == "DELETE" else ""
        server.authorization.add(self.headers["Authorization"])
        answer = server.answer(path, body) if server.status == 200 else {}
        if path == server.lose:
            server.lose = ""
            self.close_connection = True
            return
        data = json.dumps(answer or {}).encode()
        self.send_response(server.status if answer is not None else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def serving() -> Iterator[FakeMlflow]:
    server = FakeMlflow()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
