"""A source below an S3 prefix, listed page by page. S3 refuses to read on in an object that changes meanwhile."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from jobs.errors import InvalidRequest
from jobs.platform.storage import CLIENTS, PATIENCE
from jobs.retrieval import source_locations
from workers.retrieval.sources.base import (
    CHUNK,
    Fetched,
    ItemFailed,
    SourceEntry,
    SourceUnavailable,
    Take,
    display_name,
    too_many,
)

_PAGE: Final = 1000  # objects of one answer: S3's maximum
_BLOCK: Final = 8 << 20  # bytes of one request, held in memory


class BucketReader:
    """The objects below a prefix, without those that stand for folders."""

    def __init__(self, allowed: Sequence[str], url: str, options: Mapping[str, Any]) -> None:
        self._allowed, self._url, self._options = allowed, url, options
        self._opened: Any = None

    def entries(self, limit: int, look: Callable[[], None]) -> list[SourceEntry]:
        entries: list[SourceEntry] = []
        bucket, prefix = self._bucket_and_prefix()
        for item in self._list_objects(bucket, prefix, look):
            key = str(item["Key"]).removeprefix(prefix)
            if not key or key.endswith("/"):
                continue
            fingerprint = {"etag": item.get("ETag"), "size": item["Size"]}
            entries.append(SourceEntry(key, display_name(key), fingerprint, int(item["Size"])))
            if len(entries) > limit:
                raise too_many(limit)
        return entries

    def fetch(self, entry: SourceEntry, known: dict[str, Any] | None, take: Take) -> Fetched | None:
        if known is not None and entry.fingerprint == known:
            return None
        try:
            bucket, prefix = self._bucket_and_prefix()
            with (
                _our_errors(),
                self._client().open(f"{bucket}/{prefix}{entry.key}", "rb", block_size=_BLOCK) as handle,
            ):
                while chunk := handle.read(CHUNK):
                    take(chunk)
        except SourceUnavailable as error:
            raise ItemFailed(error.code, error.message) from error
        return Fetched(entry.fingerprint, entry.filename)

    def _bucket_and_prefix(self) -> tuple[str, str]:
        try:
            return source_locations.prefix(self._allowed, self._url)
        except InvalidRequest as error:
            raise SourceUnavailable(
                "prefix_not_allowed", "The operator does not allow this prefix (any more)."
            ) from error

    def _client(self) -> Any:
        if self._opened is None:
            import fsspec

            options = {"config_kwargs": PATIENCE, **self._options}
            self._opened = fsspec.filesystem("s3", use_listings_cache=False, **options)
        return self._opened

    def _list_objects(self, bucket: str, prefix: str, look: Callable[[], None]) -> Iterator[dict[str, Any]]:
        more: dict[str, str] = {}
        while True:
            look()
            with _our_errors():
                page = self._client().call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=_PAGE, **more)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}


@contextmanager
def _our_errors() -> Iterator[None]:
    """Convert errors of the S3 client, without their text, which may contain credentials."""
    try:
        yield
    except PermissionError as error:
        raise SourceUnavailable("s3_refused", "S3 does not let us read this.") from error
    except FileNotFoundError as error:
        raise SourceUnavailable("s3_not_found", "S3 says that this is not there.") from error
    except Exception as error:  # recognized by their module, so that no client library is imported here
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise SourceUnavailable("s3_away", "S3 cannot be reached, or does not answer as it should.") from error
