"""Every SDK against one server on a real socket: each version in an environment of its own, each check a test.

A suite runs once, as a process; its lines are looked up by the tests. An SDK that can't be installed here skips its
tests visibly, and fails them where CI is set.
"""

import re

import openai
import pytest
from openai.resources.evals import Evals, Runs
from openai.resources.evals.runs import OutputItems
from openai.resources.vector_stores import FileBatches, Files, VectorStores

from tests.sdk.deployment import Deployment
from tests.sdk.environments import HERE, ROOT
from tests.sdk.suites import Suite, run_suite

SDKS = {
    "python-1.109": "1.109.1",
    "python-2.8": "2.8.1",
    "python-3.16": "3.16.0",
    "python-3.57": "3.57.0",
    "node-7.57": "7.57.0",
}
#: Between the oldest and the newest: for `make soak`.
BETWEEN = ("python-2.8", "python-3.16")
CHECKS = (
    "a file is created, retrieved and read",
    "a file's content is streamed",
    "files are listed page by page",
    "a deleted file is gone",
    "parts sent in any order are put together in the order that is listed",
    "a file is uploaded in chunks",
    "a cancelled upload takes no more parts",
    "a batch runs to its output",
    "lines that fail are in the error file",
    "a batch of a bad file says which line",
    "more than 250 batches are listed",
    "a cancelled batch keeps what is finished",
    "our own fields travel with the SDK's",
    "webhook endpoints are managed",
    "a test event is sent at once",
    "a webhook's secret is rotated",
    "the event of a batch is delivered and unwrapped",
    "a forged event is refused",
    "models are listed and retrieved",
    "an interactive client is answered, whole and as a stream",
    "a chat is stored, whole and as a stream",
    "a response is answered, whole and as a stream, and kept",
    "an input is counted before it is asked for",
    "a conversation is compacted, and gone on from",
    "a conversation keeps what was said",
    "a response in the background is polled, and cancelled",
    "embeddings are answered at once",
    "400 is a BadRequestError",
    "401 is an AuthenticationError",
    "403 is a PermissionDeniedError",
    "404 is a NotFoundError",
    "409 is a ConflictError, and is not tried again",
    "422 is an UnprocessableEntityError: one key, two bodies",
    "413 is an APIStatusError",
    "429 is a RateLimitError, and says when to come again",
    "503 is an InternalServerError, and is tried again",
    "a server that gives no answer is an APIConnectionError, and the key finds what it made",
    "an answer that comes too late is an APITimeoutError, and the key finds what was made",
    "a create whose answer is lost is repeated with its key and makes one batch",
    "a create whose answer is broken is repeated with its key and makes one batch",
    "an upload whose answer is lost is repeated with its key and makes one file",
    "without a key a repeated create makes two batches",
    "many calls at once are answered",
    "an eval is created, retrieved, renamed, listed and deleted",
    "a run of an eval is graded item by item",
    "runs of an eval are listed by status, cancelled and deleted",
    "a run reads a file, and asks for responses",
    "stored chats are evaluated as they were answered, and asked again",
    "an item whose judge answers nonsense has errored, and a retry asks again",
    "an eval and a run that cannot be are BadRequestErrors",
    "a vector store is created, retrieved, changed, listed and deleted",
    "a file is brought into a vector store, read, described and taken out",
    "a file is uploaded into a vector store",
    "a file that cannot be read has failed, and says why",
    "files are brought into a vector store together",
    "files of one batch share attributes, or have their own",
    "a cancelled file batch brings in no more",
    "a vector store is searched",
    "a search is filtered",
    "a search is ranked as it asks",
    "a vector store is made with its files, and they are listed page by page",
    "a response searches files and cites them",
    "a response that searches files is streamed",
    "a response in the background searches files",
    "a batch of responses searches files",
    "what is in no vector store is a NotFoundError",
    "many searches at once are answered",
    "a fine-tuning job is created, retrieved and listed",
    "a fine-tuning job learns preferences",
    "a fine-tuning job is paused, resumed and cancelled",
    "a trained job has events, checkpoints and result files",
    "a checkpoint is permitted to another project",
    "a tuned model is listed, retrieved and deleted, and holds its training file",
    "a fine-tuning job that cannot be is a BadRequestError",
)
_ABOUT_WEBHOOKS = (
    "webhook endpoints are managed",
    "a test event is sent at once",
    "a webhook's secret is rotated",
    "the event of a batch is delivered and unwrapped",
    "a forged event is refused",
)
#: What a version has no method or field for, and its suite does by the SDK's own post, get and delete, or by hand.
RAW = {
    # OpenAI gave these versions `unwrap` and `verify_signature`, and no management of endpoints.
    **{(sdk, check): ["webhooks.create"] for sdk in ("python-1.109", "python-2.8") for check in _ABOUT_WEBHOOKS},
    # They are older than the methods.
    ("python-1.109", "an input is counted before it is asked for"): ["responses.input_tokens"],
    **{
        (sdk, "a conversation is compacted, and gone on from"): ["responses.compact"]
        for sdk in ("python-1.109", "python-2.8")
    },
    # Its Batch is older than the field: it comes as a dict.
    ("python-1.109", "a batch runs to its output"): ["batch.usage"],
    # Its file batches are older than files with attributes of their own.
    ("python-1.109", "files of one batch share attributes, or have their own"): ["file_batches.create(files=)"],
    # OpenAI has no such route.
    **{
        (sdk, "an item whose judge answers nonsense has errored, and a retry asks again"): ["evals.runs.retry"]
        for sdk in SDKS
    },
    # The helper that cuts a file into parts is Python's alone.
    ("node-7.57", "a file is uploaded in chunks"): ["uploads.upload_file_chunked"],
}
#: A suite takes some ten seconds; the first test of an SDK may install it before.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]


@pytest.fixture(
    scope="module", params=[pytest.param(sdk, marks=pytest.mark.soak if sdk in BETWEEN else ()) for sdk in SDKS]
)
def suite(request: pytest.FixtureRequest, deployment: Deployment) -> Suite:
    return run_suite(request.param, deployment)


def test_the_suite_is_whole_and_of_the_version_that_is_meant(suite: Suite, request: pytest.FixtureRequest) -> None:
    assert suite.version == SDKS[request.node.callspec.params["suite"]]
    assert suite.names == list(CHECKS)
    assert suite.errors == ""


@pytest.mark.parametrize("check", CHECKS)
def test_this_sdk_finds_that(suite: Suite, check: str, request: pytest.FixtureRequest) -> None:
    line = suite.lines[check]

    assert line["ok"], line["detail"]
    assert line["raw"] == RAW.get((request.node.callspec.params["suite"], check), [])


def test_newest_python_sdk_is_installed_version() -> None:
    assert openai.__version__ == SDKS["python-3.57"]


@pytest.mark.parametrize(("name", "kind"), [("stores", VectorStores), ("files", Files), ("batches", FileBatches)])
def test_each_method_of_vector_stores_is_called(name: str, kind: type) -> None:
    own = {method for method, code in vars(kind).items() if callable(code) and not method.startswith("_")}
    python, node = ((HERE / suite).read_text() for suite in ("stores.py", "node/stores.mjs"))

    assert own >= {"create", "retrieve"}
    assert {one for one in own if not re.search(rf"\b{name}\.{one}\b", python)} == set()
    assert {one for one in own if not re.search(rf"\b{name}\.{_camel(one)}\b", node)} == set()


@pytest.mark.parametrize(("name", "kind"), [("evals", Evals), ("runs", Runs), ("output_items", OutputItems)])
def test_each_method_of_evals_is_called(name: str, kind: type) -> None:
    own = {method for method, code in vars(kind).items() if callable(code) and not method.startswith("_")}
    python, node = ((HERE / suite).read_text() for suite in ("evals_suite.py", "node/evals.mjs"))

    assert own >= {"list", "retrieve"}
    assert {method for method in own if not re.search(rf"\b{name}\.{method}\b", python)} == set()
    assert {method for method in own if not re.search(rf"\b{_camel(name)}\.{_camel(method)}\b", node)} == set()


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


@pytest.mark.parametrize("sdk", SDKS)
def test_the_page_of_clients_names_this_sdk(sdk: str) -> None:
    language, version = sdk.split("-")
    rows = (ROOT / "docs" / "clients.md").read_text().splitlines()

    assert [row for row in rows if row.startswith(f"| openai ({language.capitalize()})") and f" {version}" in row]


def test_the_server_behind_made_no_mistake(deployment: Deployment) -> None:
    assert deployment.inline.errors == []
