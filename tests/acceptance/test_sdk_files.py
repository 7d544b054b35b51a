"""`client.files` and `client.uploads`."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI

DATA = b'{"custom_id":"1"}\n' * 50_000


def test_a_file_is_created_listed_read_and_deleted(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=("data.jsonl", DATA), purpose="batch")

    assert (file.object, file.filename, file.bytes, file.purpose) == ("file", "data.jsonl", len(DATA), "batch")
    assert sdk.files.retrieve(file.id) == file
    assert sdk.files.wait_for_processing(file.id).status == "processed"
    assert sdk.files.content(file.id).read() == DATA
    assert [one.id for one in sdk.files.list(purpose="batch")] == [file.id]
    assert sdk.files.delete(file.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file.id)


@pytest.mark.parametrize("kind", ["path", "handle", "bytes", "tuple with a type"])
def test_every_way_of_naming_a_file_works(sdk: openai.OpenAI, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(DATA)
    with path.open("rb") as handle:
        given = {"path": path, "handle": handle, "bytes": DATA, "tuple with a type": ("mine.jsonl", DATA, "text/x")}
        file = sdk.files.create(file=given[kind], purpose="user_data")  # type: ignore[arg-type]

    assert sdk.files.content(file.id).read() == DATA
    assert file.filename == ("upload" if kind == "bytes" else "mine.jsonl")


def test_expires_after_travels_in_the_form(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(
        file=("a", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )

    assert file.expires_at == file.created_at + 3600


def test_the_sdk_walks_all_pages(sdk: openai.OpenAI) -> None:
    made = [sdk.files.create(file=("a", b"x"), purpose="evals").id for _ in range(5)]

    assert [file.id for file in sdk.files.list(limit=2)] == made[::-1]
    assert [file.id for file in sdk.files.list(limit=2, order="asc")] == made
    assert [file.id for file in sdk.files.list(after=made[3])] == made[2::-1]


def test_content_streams_to_disk(sdk: openai.OpenAI, tmp_path: Path) -> None:
    file = sdk.files.create(file=("a", DATA), purpose="user_data")

    with sdk.files.with_streaming_response.content(file.id) as answer:
        assert int(answer.headers["content-length"]) == len(DATA)
        answer.stream_to_file(tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == DATA


def test_the_sdk_raises_its_own_errors(sdk: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.files.create(file=("a", b"x"), purpose="nonsense")  # type: ignore[arg-type]
    with openai.OpenAI(api_key="wrong", base_url=f"{url}/v1") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.files.list()

    assert (bad.value.param, bad.value.code, bad.value.type) == ("purpose", "invalid_value", "invalid_request_error")
    assert bad.value.request_id


def test_another_project_sees_nothing(sdk: openai.OpenAI, other_sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=("a", b"x"), purpose="batch")

    assert list(other_sdk.files.list()) == []
    for call in (other_sdk.files.retrieve, other_sdk.files.content, other_sdk.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_the_chunked_helper_puts_a_file_together(sdk: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(DATA)

    upload = sdk.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=100_000, md5=hashlib.md5(DATA).hexdigest()
    )

    assert upload.status == "completed"
    assert upload.file is not None
    assert sdk.files.content(upload.file.id).read() == DATA


def test_parts_may_arrive_in_parallel_and_in_any_order(sdk: openai.OpenAI) -> None:
    pieces = [bytes([n]) * 70_000 for n in range(12)]
    size = sum(map(len, pieces))
    upload = sdk.uploads.create(bytes=size, filename="a", mime_type="text/plain", purpose="user_data")

    def send(n: int) -> tuple[int, str]:
        return n, sdk.uploads.parts.create(upload.id, data=io.BytesIO(pieces[n])).id

    with ThreadPoolExecutor(6) as pool:
        ids = dict(pool.map(send, reversed(range(12))))
    done = sdk.uploads.complete(upload.id, part_ids=[ids[n] for n in range(12)])

    assert done.file is not None
    assert sdk.files.content(done.file.id).read() == b"".join(pieces)


def test_cancelled_upload_reports_status_and_refuses_parts(sdk: openai.OpenAI) -> None:
    upload = sdk.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="batch")

    assert sdk.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        sdk.uploads.parts.create(upload.id, data=b"x")


def test_retried_upload_with_same_key_creates_single_file(sdk: openai.OpenAI, web: FastAPI) -> None:
    headers = {"Idempotency-Key": "my-upload"}

    first, second = (sdk.files.create(file=("a", DATA), purpose="batch", extra_headers=headers).id for _ in range(2))

    assert first == second
    assert web.state.services.storage.list("files") == [f"files/{first}"]


async def test_the_async_client_works_too(sdk: openai.OpenAI, url: str) -> None:
    async with openai.AsyncOpenAI(api_key=sdk.api_key, base_url=f"{url}/v1") as client:
        file = await client.files.create(file=("a", DATA), purpose="batch")
        content = await client.files.content(file.id)
        listed = [one.id async for one in client.files.list(limit=1)]

    assert content.read() == DATA
    assert listed == [file.id]
