"""Check what runs and answers: broker, API, ports, supervised processes, attached engines."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import redis

from cli.doctor.findings import Finding, Patient, broken, fine, warning
from cli.up import broker as embedded
from cli.up import readiness
from cli.up.readiness import answers, is_free
from jobs.fleet.models_file import ModelConfig, ModelsFileError, Registry
from jobs.inference.admission import FULL, Memory, read_memory
from jobs.inference.interactive import address, redis_url
from jobs.platform.processes import alive
from jobs.queues import command_for
from jobs.requests.endpoints import base_of
from jobs.setting_groups import MB

_PATIENCE = 5.0
_START = "nightmill up"
_MANY_RESTARTS = 5
_NO_LIST = frozenset({404, 405, 501})  # as the HTTP engine interprets them
_TGI = "text-generation-router"


def broker(patient: Patient) -> Iterator[Finding]:
    url = patient.config.broker_url
    if not url:
        yield _embedded_broker(patient)
    elif url.startswith(("redis", "valkey", "unix")):
        yield _redis("broker", url, "NIGHTMILL_BROKER_URL")
    else:
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 5672
        if answers(host, port):
            yield fine("broker", f"{parts.scheme} at {host}:{port} takes connections")
        else:
            yield broken("broker", f"nothing answers at {host}:{port}", "start it, or correct NIGHTMILL_BROKER_URL")


def streams(patient: Patient) -> Iterator[Finding]:
    """Check the Redis server of interactive requests, where it is not the broker."""
    if url := patient.config.streams_url:
        yield _redis("interactive clients", url, "NIGHTMILL_STREAMS_URL")
    elif not redis_url(patient.config):
        message = "RabbitMQ does not carry their questions; chats and embeddings outside of batches answer 503"
        yield warning("interactive clients", message, "set NIGHTMILL_STREAMS_URL to a Redis or Valkey server")


def _embedded_broker(patient: Patient) -> Finding:
    path = embedded.socket_path(patient.folder.path)
    if embedded.answers(patient.folder.path):
        with suppress(redis.RedisError):  # it is stopping
            if full := _full("broker", read_memory(f"unix://{path}", _PATIENCE)):
                return full
        return fine("broker", f"embedded, at {path}")
    if patient.run:
        return broken(
            "broker", f"the embedded one does not answer at {path}", f"look at {patient.folder.logs}/broker.log"
        )
    return fine("broker", "embedded; it starts with `nightmill up`")


def _redis(name: str, url: str, variable: str) -> Finding:
    shown = urlsplit(url)._replace(netloc=urlsplit(url).hostname or "", query="").geturl()
    try:
        with redis.Redis.from_url(address(url), socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE) as client:
            client.ping()
            policy = dict(client.config_get("maxmemory-policy")).get("maxmemory-policy")
        memory = read_memory(address(url), _PATIENCE)
    except (redis.RedisError, ValueError) as error:
        return broken(name, f"{shown}: {error}", f"start it, or correct {variable}")
    if policy != "noeviction":
        return warning(name, f"{shown} may evict queues (maxmemory-policy {policy})", "set it to noeviction")
    if not memory.limit:
        message = f"{shown} has no maxmemory: interactive requests can take all memory of its host"
        return warning(name, message, "set maxmemory, to 512mb or more")
    return _full(name, memory) or fine(name, f"{shown} answers")


def _full(name: str, memory: Memory) -> Finding | None:
    """Return a finding for a server that refuses interactive requests; None for any other."""
    if not memory.is_full:
        return None
    message = f"{FULL}: {memory.used // MB} of {memory.limit // MB} MB are in use; chats and embeddings answer 503"
    return broken(name, message, "wait some minutes until unread answers expire; if it stays so, raise maxmemory")


def api(patient: Patient) -> Iterator[Finding]:
    url = patient.run.get("url") or readiness.running_url(patient.config) or patient.config.url
    state = readiness.look(url)
    if state is None and not patient.run:
        yield fine("api", f"nothing runs in {patient.folder.path}; start it with `{_START}`")
    elif state is None:
        yield broken("api", f"no answer at {url}", f"look at {patient.folder.logs}/web.log")
    elif state.get("status") == "ready":
        workers = ", ".join(f"{queue} {slots}" for queue, slots in state.get("workers", {}).items())
        yield fine("api", f"ready at {url}; slots: {workers or 'none yet'}")
    elif state.get("status") == FULL:
        message = f"{url} answers chats and embeddings with 503, {FULL}; jobs go on"
        yield warning("api", message, "see `broker` and `interactive clients` above")
    else:
        waiting = state.get("depth") or "none"
        message = f"{url} says '{state.get('status', 'something else')}'; work that waits: {waiting}"
        yield broken("api", message, f"look at the processes below and at {patient.folder.logs}")


def ports(patient: Patient) -> Iterator[Finding]:
    """Check that ports are free, while nothing runs: a running installation uses its ports."""
    config = patient.config
    if patient.run or readiness.running_url(config):
        return
    for name, host, port in (("api", config.host, config.port), ("flower", config.flower_host, config.flower)):
        if is_free(host, port):
            yield fine(f"port of {name}", f"{host}:{port} is free")
        else:
            yield broken(f"port of {name}", f"{host}:{port} is in use", f"choose another: {_START} --port N")


def processes(patient: Patient) -> Iterator[Finding]:
    owner = patient.folder.owner()
    if patient.run and owner and owner.has_ended:
        yield broken("up", f"it was killed (pid {owner.pid}), or the machine was", f"start it again: `{_START}`")
    for process in patient.run.get("processes", []):
        name, log = f"process {process['name']}", f"look at {patient.folder.logs}/{process['name']}.log"
        if not process["pid"] or not alive(process["pid"], process["started"]):
            message = f"does not run ({process['state']}{_last_exit(process)}), restarted {process['restarts']} times"
            yield broken(name, message, log)
        elif process["restarts"] >= _MANY_RESTARTS:
            yield warning(name, f"runs, but was restarted {process['restarts']} times{_last_exit(process)}", log)
        else:
            yield fine(name, f"runs as {process['pid']}")


def queues(patient: Patient) -> Iterator[Finding]:
    """Check that a worker serves the queue of each model, where a deployment answers."""
    url = patient.run.get("url") or readiness.running_url(patient.config)
    state = (readiness.look(url) if url else None) or {}
    if "workers" not in state:
        return
    loading = {entry["queue"] for entry in state.get("loading", ())}
    for queue, models in _by_queue(patient).items():
        names = ", ".join(model.name for model in models)
        if queue in loading:
            yield fine(f"queue {queue}", f"loading {names}")
        elif queue not in state["workers"]:
            command = command_for(queue, embeds=all(model.engine.embeds for model in models))
            fix = f"`nightmill down` and `{_START}` start one, and so does `{command}`"
            yield warning(f"queue {queue}", f"no worker serves it: {names} cannot be asked", fix)


def _by_queue(patient: Patient) -> dict[str, list[ModelConfig]]:
    """Return the models of each queue."""
    models: dict[str, list[ModelConfig]] = {}
    with suppress(ModelsFileError):  # the check of the models reports it
        for model in Registry.load(patient.config).models.values():
            models.setdefault(model.queue, []).append(model)
    return models


def _last_exit(process: Mapping[str, Any]) -> str:
    """Return the last exit of a process and the delay that followed. Earlier versions do not record them."""
    ending = process.get("ending")
    return f"; last: {ending}, started again after {process['delay']:g} s" if ending else ""


def engine_endpoints(patient: Patient) -> Iterator[Finding]:
    """Request the list of models of each attached server."""
    for url in patient.config.engine_urls:
        name = f"engine {url}"
        request = urllib.request.Request(f"{base_of(url)}/v1/models")  # noqa: S310 (the operator's own setting)
        if patient.config.engine_api_key:
            request.add_header("Authorization", f"Bearer {patient.config.engine_api_key}")
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:  # noqa: S310
                models = [model["id"] for model in json.load(answer)["data"]]
        except urllib.error.HTTPError as error:
            if error.code in _NO_LIST:
                message = f"has no list of models ({error.code}): requests for names that no other engine has go to it"
                yield warning(name, message, "name its models in models.yaml, or correct NIGHTMILL_ENGINE_URLS")
                continue
            yield broken(name, f"answers {error.code} to GET /v1/models", "correct NIGHTMILL_ENGINE_API_KEY or the URL")
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield broken(name, f"does not answer: {error}", "start it, or correct NIGHTMILL_ENGINE_URLS")
        else:
            yield fine(name, f"serves {', '.join(models)}")


def text_images(patient: Patient) -> Iterator[Finding]:
    """Name the servers that would fetch images from URLs in a prompt's text, unless such prompts are refused."""
    if patient.config.refuse_text_images:
        return
    for url in sorted(map(base_of, _servers(patient))):
        with suppress(OSError, ValueError), urllib.request.urlopen(f"{url}/info", timeout=_PATIENCE) as answer:  # noqa: S310
            info = json.load(answer)
            if isinstance(info, dict) and info.get("router") == _TGI:
                message = "text-generation-inference fetches Markdown images of http(s) URLs from the text of prompts"
                yield warning(f"images in text at {url}", message, "set NIGHTMILL_REFUSE_TEXT_IMAGES=true")


def _servers(patient: Patient) -> set[str]:
    """Return the URLs of the settings and of the models file."""
    try:
        models = Registry.load(patient.config).models.values()
    except ModelsFileError:
        return set(patient.config.engine_urls)  # the check of the models reports it
    return {*patient.config.engine_urls, *(url for model in models for url in model.source.urls)}
