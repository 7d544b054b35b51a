"""The files of tuned models over HTTP: listed with their hashes, downloaded by their owner, and by nobody else."""

import hashlib
import json
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support import tuned_adapters

NAME = "ft:org/base:default:support:abc"
ROUTE = f"/v1/fine_tuning/models/{NAME}/files"
WEIGHTS = f"the weights of {NAME}".encode()


@pytest.fixture
def model(app: FastAPI) -> str:
    services = app.state.services
    tuned_adapters.tuned_model(services.db, services.storage, NAME, base="org/base", files={"optimizer.pt": b"moments"})
    return NAME


def error_of(client: TestClient, route: str) -> tuple[int, str]:
    answer = client.get(route)
    return answer.status_code, answer.json()["error"]["code"]


def test_files_are_listed_and_have_the_bytes_of_their_hashes(client: TestClient, model: str) -> None:
    listed = client.get(ROUTE).json()

    assert (listed["object"], listed["model"], listed["base"], listed["method"]) == ("list", model, "org/base", "lora")
    names = [file["name"] for file in listed["data"]]
    assert names == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    for file in listed["data"]:
        data = client.get(f"{ROUTE}/{file['name']}").content
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
    assert "optimizer.pt" in json.loads(client.get(f"{ROUTE}/manifest.json").content)["files"]


def test_a_range_of_a_file_and_a_name_that_is_escaped(client: TestClient, model: str) -> None:
    route = f"/v1/fine_tuning/models/{quote(model, safe='')}/files/adapter_model.safetensors"

    answer = client.get(route, headers={"Range": "bytes=4-10"})

    assert (answer.status_code, answer.content) == (206, WEIGHTS[4:11])
    assert answer.headers["content-range"] == f"bytes 4-10/{len(WEIGHTS)}"
    assert client.get(route, headers={"Range": "bytes=999-"}).status_code == 416


@pytest.mark.parametrize("name", ["optimizer.pt", "config.json", "%2e%2e"])
def test_other_names_are_no_files_of_the_model(client: TestClient, model: str, name: str) -> None:
    assert error_of(client, f"{ROUTE}/{name}") == (404, "file_not_found")


def test_permission_to_query_model_does_not_allow_download(app: FastAPI, stranger: TestClient, model: str) -> None:
    tuned_adapters.permit(app.state.services.db, model, "another")

    for route in (ROUTE, f"{ROUTE}/adapter_model.safetensors", ROUTE.replace("support", "other")):
        assert error_of(stranger, route) == (404, "model_not_found")


def test_a_deleted_model_has_no_files(app: FastAPI, client: TestClient, model: str) -> None:
    tuned_adapters.delete(app.state.services.db, model)

    assert error_of(client, ROUTE) == (404, "model_not_found")


def test_model_with_deleted_files_is_not_found(app: FastAPI, client: TestClient, model: str) -> None:
    services = app.state.services
    services.storage.delete(tuned_adapters.location_of(services.db, model))

    assert client.get(ROUTE).status_code == 404
