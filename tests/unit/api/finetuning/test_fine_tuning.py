"""Fine-tuning jobs are created over HTTP as OpenAI shows them, and bad requests are refused."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from jobs.finetuning.payload import FineTuning
from jobs.ledger.tables import Job
from jobs.registry.tables import TunedModel
from tests.support.tuning_requests import BASE, add_worker, create, error_of, registered, upload
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

_MULTIPLIER = "hyperparameters.learning_rate_multiplier"


def test_a_job_is_created_as_openai_shows_it(client: TestClient) -> None:
    file_id = upload(client)

    job = create(client, training_file=file_id, suffix="support", seed=7, metadata={"team": "a"})

    assert job["id"].startswith("ftjob-")
    expected: dict[str, Any] = {
        "object": "fine_tuning.job",
        "model": BASE,
        "status": "validating_files",
        "organization_id": "default",
        "training_file": file_id,
        "validation_file": None,
        "seed": 7,
        "error": None,
        "fine_tuned_model": None,
        "finished_at": None,
        "trained_tokens": None,
        "estimated_finish": None,
        "result_files": [],
        "integrations": None,
        "metadata": {"team": "a"},
        "hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
    }
    assert {name: job[name] for name in expected} == expected
    assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": job["hyperparameters"]}}
    assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json() == job


def test_the_fields_of_a_method_and_ours_come_back(client: TestClient) -> None:
    job = create(
        client,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}},
        peft="full",
        training={"rank": 4, "packing": True, "target_modules": ["q_proj"]},
        validation={"type": "holdout", "fraction": 0.2},
        early_stopping={"patience": 2, "max_seconds": 60, "max_device_seconds": 50, "max_memory_bytes": 4096},
    )

    chosen = job["method"]["dpo"]["hyperparameters"]
    assert (chosen["beta"], chosen["n_epochs"], chosen["batch_size"]) == (0.2, 2, "auto")
    assert "supervised" not in job["method"]
    assert (job["peft"], job["training"]["rank"], job["training"]["target_modules"]) == ("full", 4, ["q_proj"])
    assert job["validation"] == {"type": "holdout", "fraction": 0.2}
    limits = {"max_seconds": 60, "max_device_seconds": 50, "max_memory_bytes": 4096}
    assert job["early_stopping"] == {"patience": 2, "min_delta": 0.0, **limits}


def test_the_deprecated_hyperparameters_count_where_the_method_has_none(client: TestClient) -> None:
    job = create(client, hyperparameters={"n_epochs": 3})

    assert job["hyperparameters"]["n_epochs"] == 3


def test_a_seed_is_drawn_where_none_is_given(client: TestClient) -> None:
    assert 0 <= create(client)["seed"] < 2**31


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "invalid_value", "method.type"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}},
            "integer_below_min_value",
            "method.supervised.hyperparameters.n_epochs",
        ),
        ({"hyperparameters": {"batch_size": 257}}, "integer_above_max_value", "hyperparameters.batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "decimal_below_min_value", _MULTIPLIER),
        ({"hyperparameters": {"learning_rate_multiplier": "fast"}}, "invalid_value", _MULTIPLIER),
        ({"hyperparameters": {"beta": 0.1}}, "unknown_parameter", "hyperparameters.beta"),
        ({"suffix": ""}, "string_below_min_length", "suffix"),
        ({"suffix": "x" * 65}, "string_above_max_length", "suffix"),
        ({"seed": 2**31}, "integer_above_max_value", "seed"),
        ({"peft": "magic"}, "invalid_value", "peft"),
        ({"training": {"rank": 0}}, "integer_below_min_value", "training.rank"),
        ({"training": {"learning_rate": 0}}, "decimal_below_min_value", "training.learning_rate"),
        ({"training": {"chat_template": "x" * (1 << 17)}}, "string_above_max_length", "training.chat_template"),
        ({"early_stopping": {"max_seconds": 0}}, "integer_below_min_value", "early_stopping.max_seconds"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
        ({}, "file_not_found", "training_file"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_and_changes_nothing(
    client: TestClient, fields: dict[str, Any], code: str, param: str
) -> None:
    assert error_of(client, **fields) == (400, code, param)
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_an_adapter_that_the_engine_of_the_base_would_not_load_is_refused(client: TestClient) -> None:
    file_id = upload(client)

    templated = error_of(client, training_file=file_id, training={"chat_template": "{{ tools }}"})
    assert templated == (400, "unsupported_value", "training.chat_template")
    assert create(client, training_file=file_id, peft="full", training={"chat_template": "{{ tools }}"})["training"]
    dora = error_of(client, training_file=file_id, training={"use_dora": True})
    assert dora == (400, "unsupported_value", "training.use_dora")
    refused = error_of(client, training_file=file_id, training={"rank": 33})  # the packaged model's engine has 32

    assert refused == (400, "integer_above_max_value", "training.rank")
    create(client, training_file=file_id, training={"rank": 32})
    create(client, training_file=file_id, training={"rank": 64}, peft="full")


def test_qlora_is_refused_if_all_workers_report_missing_kernels(app: FastAPI, client: TestClient) -> None:
    file_id = upload(client)
    create(client, training_file=file_id, peft="qlora")  # nobody has said anything
    add_worker(app, "finetune-1", {"qlora": False, "fault": "bitsandbytes is not installed."})

    refused = error_of(client, training_file=file_id, peft="qlora")

    assert refused == (400, "unsupported_on_this_worker", "peft")
    assert create(client, training_file=file_id, peft="auto")["peft"] == "auto"
    add_worker(app, "finetune-2", None)
    assert create(client, training_file=file_id, peft="qlora")["peft"] == "qlora", "it may have them"
    add_worker(app, "finetune-2", {"qlora": True, "fault": None})
    assert create(client, training_file=file_id, peft="qlora")["peft"] == "qlora"


def test_reinforcement_names_the_methods_that_work(client: TestClient) -> None:
    body = {"model": BASE, "training_file": "file-x", "method": {"type": "reinforcement"}}

    message = client.post("/v1/fine_tuning/jobs", json=body).json()["error"]["message"]

    assert message == "Invalid value: 'reinforcement'. Supported values are: 'supervised' and 'dpo'."


def test_a_base_is_trained_where_vllm_is_off(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(vllm_enabled=False)

    assert create(client_of(app, make_key(app)))["model"] == BASE


@pytest.mark.parametrize("model", ["nothing", "all-minilm-l6-v2", "remote", "ft:nothing:default::1"])
def test_a_model_that_cannot_be_trained_is_refused_with_those_that_can(
    tmp_path: Any, client: TestClient, model: str
) -> None:
    (tmp_path / "models.yaml").write_text(
        f"models:\n  remote: {{source: {{urls: ['http://127.0.0.1:9/v1']}}, engine: http}}\n"
        f"  {BASE}: {{source: {{packaged: {BASE}}}, engine: vllm}}\n"
        "  all-minilm-l6-v2: {source: {packaged: all-minilm-l6-v2}, engine: embed}\n"
    )
    answer = client.post("/v1/fine_tuning/jobs", json={"model": model, "training_file": upload(client)})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "model_not_available", "model")
    assert error["message"].endswith(f"Models that can be trained: `{BASE}`.")


def test_files_of_other_purposes_and_of_other_projects_are_refused(client: TestClient, stranger: TestClient) -> None:
    wrong, theirs = upload(client, "batch"), upload(stranger)

    assert error_of(client, training_file=wrong) == (400, "invalid_file_purpose", "training_file")
    assert error_of(client, training_file=theirs) == (400, "file_not_found", "training_file")
    mine = upload(client)
    assert error_of(client, training_file=mine, validation_file=theirs) == (400, "file_not_found", "validation_file")


WANDB = {"project": "p", "name": "run", "entity": None, "tags": ["a", "b"]}


def test_integrations_are_refused_where_the_deployment_has_no_service(client: TestClient) -> None:
    body = {"model": BASE, "training_file": upload(client), "integrations": [{"type": "wandb", "wandb": WANDB}]}

    answer = client.post("/v1/fine_tuning/jobs", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_value", "integrations")
    assert "NIGHTMILL_WANDB_MODE" in error["message"]
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_integration_is_returned_and_stored_as_requested(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(wandb_mode="offline")
    client = client_of(app, make_key(app))

    job = create(client, integrations=[{"type": "wandb", "wandb": {"project": "p", "name": "run", "tags": ["a", "b"]}}])
    none = create(client, integrations=[])

    assert job["integrations"] == [{"type": "wandb", "wandb": WANDB}]
    assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["integrations"] == job["integrations"]
    assert none["integrations"] is None
    with app.state.services.db.read() as session:
        payload = FineTuning.model_validate(session.get_one(Job, job["id"]).payload)
    assert payload.wandb is not None
    assert payload.wandb.tags == ["a", "b"]


@pytest.mark.parametrize(
    ("integration", "code", "param"),
    [
        ({"type": "mlflow"}, "invalid_value", "integrations[0].type"),
        ({"type": "wandb"}, "missing_required_parameter", "integrations[0].wandb"),
        ({"type": "wandb", "wandb": {}}, "missing_required_parameter", "integrations[0].wandb.project"),
        (
            {"type": "wandb", "wandb": {"project": "p", "colour": 1}},
            "unknown_parameter",
            "integrations[0].wandb.colour",
        ),
    ],
)
def test_a_bad_integration_is_refused(client: TestClient, integration: Any, code: str, param: str) -> None:
    assert error_of(client, integrations=[integration]) == (400, code, param)


def test_second_integration_is_refused(client: TestClient) -> None:
    refused = error_of(client, integrations=[{"type": "wandb", "wandb": WANDB}] * 2)

    assert refused == (400, "array_above_max_length", "integrations")


def test_file_validation_requires_validation_file(client: TestClient) -> None:
    file_id = upload(client)

    refused = error_of(client, training_file=file_id, validation={"type": "file"})

    assert refused == (400, "invalid_value", "validation.type")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"hyperparameters": {"learning_rate_multiplier": 2}, "training": {"learning_rate": 1e-4}}, "learning_rate"),
        ({"training": {"load_best": True}}, "load_best"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(client: TestClient, fields: dict[str, Any], param: str) -> None:
    assert error_of(client, training_file=upload(client), **fields) == (400, "invalid_value", f"training.{param}")


def test_a_suffix_is_a_slug_in_the_name_of_the_model(app: FastAPI, client: TestClient) -> None:
    job = create(client, suffix="My Support: 2nd try!")

    assert job["user_provided_suffix"] == "My Support: 2nd try!"
    with app.state.services.db.read() as session:
        payload = FineTuning.model_validate(session.get_one(Job, job["id"]).payload)
    assert payload.result.startswith(f"ft:{BASE}:default:my-support-2nd-try:")


@pytest.mark.parametrize(("method", "peft", "text"), [("full", "lora", "only the"), ("lora", "full", "Merged")])
@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/validate"])
def test_a_chain_from_weights_to_an_adapter_or_back_is_refused(
    app: FastAPI, client: TestClient, method: str, peft: str, text: str, path: str
) -> None:
    parent = registered(app, create(client))
    with app.state.services.db.write() as session:
        session.execute(update(TunedModel).values(method=method))

    refused = client.post(path, json={"model": parent, "training_file": upload(client), "peft": peft})

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_value", "peft")
    assert text in error["message"]


def test_training_goes_on_from_a_tuned_model_of_the_project_alone(
    app: FastAPI, client: TestClient, stranger: TestClient
) -> None:
    parent = registered(app, create(client))

    job = create(client, model=parent, suffix="more")

    with app.state.services.db.read() as session:
        payload = FineTuning.model_validate(session.get_one(Job, job["id"]).payload)
    assert (payload.base, payload.parent, job["model"]) == (BASE, parent, parent)
    assert payload.result.startswith(f"ft:{BASE}:default:more:")
    assert error_of(stranger, model=parent, training_file=upload(stranger))[1] == "model_not_available"
