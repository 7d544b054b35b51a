"""A source reads what lies under a prefix of S3, as moto speaks it."""

from typing import Any

import pytest
import s3fs

from jobs.errors import InvalidRequest
from jobs.retrieval import source_locations
from tests.support.services import S3
from workers.retrieval.sources import bucket as bucket_module
from workers.retrieval.sources.base import ItemFailed, SourceEntry, SourceUnavailable
from workers.retrieval.sources.bucket import BucketReader


@pytest.fixture
def objects(s3: S3) -> Any:
    files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, **s3.options)
    files.pipe({f"{s3.bucket}/docs/{name}": name.encode() for name in ("a.txt", "b/c #1?.txt", "d.txt")})
    files.pipe({f"{s3.bucket}/docs-other/x.txt": b"x", f"{s3.bucket}/docs/folder/": b""})
    return files


def bucket(s3: S3, prefix: str = "docs", **options: Any) -> BucketReader:
    given = {"skip_instance_cache": True, **s3.options, **options}
    return BucketReader((f"s3://{s3.bucket}/docs",), f"s3://{s3.bucket}/{prefix}/", given)


def read(where: BucketReader, entry: SourceEntry) -> bytes:
    chunks: list[bytes] = []
    assert where.fetch(entry, None, chunks.append) is not None
    return b"".join(chunks)


def test_objects_below_the_prefix_are_listed_and_read(s3: S3, objects: Any) -> None:
    found = {entry.key: entry for entry in bucket(s3).entries(100, bool)}

    assert found.keys() == {"a.txt", "b/c #1?.txt", "d.txt"}
    assert {key: read(bucket(s3), entry) for key, entry in found.items()} == {key: key.encode() for key in found}
    assert found["b/c #1?.txt"].filename == "c #1?.txt"
    assert bucket(s3).fetch(found["a.txt"], found["a.txt"].fingerprint, bytes) is None


@pytest.mark.verify
def test_another_content_has_another_fingerprint(s3: S3, objects: Any) -> None:
    before = {entry.key: entry.fingerprint for entry in bucket(s3).entries(100, bool)}
    objects.pipe(f"{s3.bucket}/docs/a.txt", b"b.txt")

    after = {entry.key: entry.fingerprint for entry in bucket(s3).entries(100, bool)}

    assert {key for key in after if after[key] != before[key]} == {"a.txt"}


def test_listing_reads_all_pages_and_refuses_too_many_objects(
    s3: S3, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "_PAGE", 2)
    objects.pipe({f"{s3.bucket}/docs/many/{n}": b"x" for n in range(5)})
    looks: list[None] = []

    assert len(bucket(s3, "docs/many").entries(5, lambda: looks.append(None))) == 5
    assert len(looks) == 3
    with pytest.raises(SourceUnavailable, match="more than 4"):
        bucket(s3, "docs/many").entries(4, bool)
    objects.rm(f"{s3.bucket}/docs/many", recursive=True)


def test_unavailable_s3_or_missing_bucket_is_not_treated_as_deletion(s3: S3, objects: Any) -> None:
    [entry] = [entry for entry in bucket(s3).entries(100, bool) if entry.key == "a.txt"]
    away = bucket(
        s3,
        client_kwargs={"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"},
        config_kwargs={"connect_timeout": 0.5, "retries": {"max_attempts": 1}},
    )

    with pytest.raises(SourceUnavailable):
        away.entries(10, bool)
    with pytest.raises(ItemFailed):
        read(away, entry)
    with pytest.raises(SourceUnavailable):
        BucketReader(("s3://no-such-bucket",), "s3://no-such-bucket/", {**s3.options}).entries(10, bool)
    with pytest.raises(ItemFailed):
        read(bucket(s3), SourceEntry("gone.txt", "gone.txt"))


def test_source_that_is_no_longer_allowed_is_not_read(s3: S3, objects: Any) -> None:
    with pytest.raises(SourceUnavailable, match="does not allow"):
        bucket(s3, "docs-other").entries(10, bool)


@pytest.mark.parametrize(
    ("allowed", "url", "found"),
    [
        ("s3://bucket", "s3://bucket", ("bucket", "")),
        ("s3://bucket", "s3://bucket/a/b", ("bucket", "a/b/")),
        ("s3://bucket/a", "s3://bucket/a/", ("bucket", "a/")),
        ("s3://bucket/a/", "s3://bucket/a/b/", ("bucket", "a/b/")),
        ("s3://bucket/a", "s3://bucket/ab", None),
        ("s3://bucket/a", "s3://bucket", None),
        ("s3://bucket/a", "s3://bucket/a/../b", None),
        ("s3://bucket/a", "s3://bucket/a//b", None),
        ("s3://bucket", "s3://bucket2/a", None),
        ("s3://bucket", "https://bucket/a", None),
        ("s3://bucket", "file:///etc", None),
        ("s3://bucket", "bucket/a", None),
    ],
)
def test_only_prefixes_below_allowed_prefix_are_allowed(allowed: str, url: str, found: tuple[str, str] | None) -> None:
    if found is None:
        with pytest.raises(InvalidRequest):
            source_locations.prefix((allowed,), url)
    else:
        assert source_locations.prefix((allowed,), url) == found


def test_our_own_mistakes_are_not_taken_for_the_servers() -> None:
    with pytest.raises(ZeroDivisionError), bucket_module._our_errors():
        raise ZeroDivisionError
    with pytest.raises(SourceUnavailable) as away, bucket_module._our_errors():
        raise TimeoutError
    assert away.value.code == "s3_away"
