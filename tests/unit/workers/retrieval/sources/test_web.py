"""Documents behind URLs: conditions, redirects, limits, and where no request of ours may go."""

import socket
from ipaddress import ip_address

import pytest

from tests.support.web_site import Site
from workers.retrieval.sources.base import Fetched, ItemDeleted, ItemFailed, SourceEntry, SourceUnavailable
from workers.retrieval.sources.web import PageReader


def fetch(url: str, known: dict[str, str] | None = None, *, seconds: float = 5.0) -> tuple[Fetched | None, bytes]:
    pages, chunks = PageReader((url,), seconds, allow_private=True), list[bytes]()
    [entry] = pages.entries(1, bool)
    return pages.fetch(entry, known, chunks.append), b"".join(chunks)


def test_a_document_is_fetched_once_and_then_only_if_it_changed(site: Site) -> None:
    site.put("/a/report", b"%PDF-", type="application/pdf", etag='"7"', headers={"Last-Modified": "yesterday"})

    told, content = fetch(site.url("/a/report"))

    assert told == Fetched({"etag": '"7"', "last-modified": "yesterday"}, "report.pdf")
    assert content == b"%PDF-"
    assert fetch(site.url("/a/report"), told.fingerprint) == (None, b"")
    assert site.asked["/a/report"][-1]["If-None-Match"] == '"7"'
    assert site.asked["/a/report"][-1]["If-Modified-Since"] == "yesterday"


def test_values_that_no_header_can_hold_are_not_sent(site: Site) -> None:
    site.put("/a", b"a", etag='"\xfc"', headers={"Last-Modified": "yesterday"})

    told, _ = fetch(site.url("/a"))

    assert told == Fetched({"last-modified": "yesterday"}, "a.txt")


def test_redirects_are_followed_up_to_limit(site: Site) -> None:
    site.put("/end", b"here")
    for n in range(6):
        site.move(f"/{n}", f"/{n + 1}#part" if n < 5 else "/end")
    assert fetch(site.url("/1"))[1] == b"here"

    with pytest.raises(ItemFailed, match="more than 5"):
        fetch(site.url("/0"))
    site.move("/loop", "/loop", 308)
    with pytest.raises(ItemFailed, match="more than 5"):
        fetch(site.url("/loop"))


@pytest.mark.parametrize("place", ["http://169.254.169.254/latest", "file:///etc/passwd", "ftp://a.example/", "//[::1"])
def test_redirect_to_forbidden_url_is_refused(site: Site, place: str) -> None:
    site.move("/a", place)

    with pytest.raises(ItemFailed) as refused:
        fetch(site.url("/a"))
    assert refused.value.code == "url_refused"


def test_no_request_reaches_a_private_address(site: Site) -> None:
    """Neither as an address, nor as a name that leads to one, nor through a redirect, nor over plain http."""
    private = [ip_address("127.0.0.1")]
    for url in (site.url("/a"), f"https://127.0.0.1:{site.port}/a", "https://10.0.0.7/a", "https://[::1]/a"):
        with pytest.raises(ItemFailed) as refused:
            PageReader((url,), 2.0).fetch(SourceEntry(url, "a"), None, bytes)
        assert refused.value.code == "url_refused"
    url = "https://docs.example.com:8443/a"
    with pytest.raises(ItemFailed, match="address not public"):
        PageReader((url,), 2.0, resolve=lambda *_: private).fetch(SourceEntry(url, "a"), None, bytes)
    assert not site.asked


def test_a_name_that_answers_differently_the_second_time_gains_nothing(site: Site) -> None:
    """Connect to the address that was checked: the name is resolved once, at the connection."""
    answers = iter([[ip_address("93.184.216.34"), ip_address("127.0.0.1")], [ip_address("127.0.0.1")]])
    url = "https://docs.example.com:8443/a"
    pages = PageReader((url,), 2.0, resolve=lambda *_: next(answers))

    for _ in range(2):
        with pytest.raises(ItemFailed, match="address not public"):
            pages.fetch(SourceEntry(url, "a"), None, bytes)


@pytest.mark.parametrize("status", [404, 410])
def test_status_404_or_410_marks_page_as_deleted(site: Site, status: int) -> None:
    site.put("/a", b"", status=status)

    with pytest.raises(ItemDeleted):
        fetch(site.url("/a"))


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 429, 500, 502, 503])
def test_any_other_answer_is_no_document_and_no_end_of_it(site: Site, status: int) -> None:
    site.put("/a", b"", status=status)

    with pytest.raises(ItemFailed) as failed:
        fetch(site.url("/a"))
    assert (failed.value.code, failed.value.message) == ("http_status", f"The server answered {status}.")


def test_a_server_that_trickles_has_its_time(site: Site) -> None:
    site.put("/a", b"x" * 100, every=0.2)

    with pytest.raises(ItemFailed, match="timeout"):
        fetch(site.url("/a"), seconds=0.5)


def test_half_a_document_is_none(site: Site) -> None:
    site.put("/a", b"half", claims=8)

    with pytest.raises(ItemFailed) as failed:
        fetch(site.url("/a"))
    assert failed.value.code == "url_unreachable"


def test_a_server_that_is_not_there_or_hangs_up_is_named_by_that_alone(site: Site) -> None:
    site.put("/a", b"", status=0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}/a?token=hush"

    for url in (site.url("/a?token=hush"), closed):
        with pytest.raises(ItemFailed) as failed:
            fetch(url)
        assert "hush" not in failed.value.message


def test_compressed_response_is_refused(site: Site) -> None:
    site.put("/a", b"\x1f\x8b", headers={"Content-Encoding": "gzip"})

    with pytest.raises(ItemFailed) as failed:
        fetch(site.url("/a"))
    assert failed.value.code == "content_encoding"
    assert site.asked["/a"][0]["Accept-Encoding"] == "identity"


def test_consumer_may_stop_a_download(site: Site) -> None:
    site.put("/a", b"x" * (5 << 20))
    url, taken = site.url("/a"), list[int]()

    def enough(chunk: bytes) -> None:
        taken.append(len(chunk))
        if sum(taken) > 1 << 20:
            raise ItemFailed("file_too_large", "Enough.")

    with pytest.raises(ItemFailed, match="Enough"):
        PageReader((url,), 5.0, allow_private=True).fetch(SourceEntry(url, "a"), None, enough)
    assert sum(taken) < 3 << 20


def test_too_many_urls_are_refused_before_any_request(site: Site) -> None:
    pages = PageReader((site.url("/a"), site.url("/b")), 5.0, allow_private=True)

    assert [entry.filename for entry in pages.entries(2, bool)] == ["a", "b"]
    with pytest.raises(SourceUnavailable) as no:
        pages.entries(1, bool)
    assert no.value.code == "too_many_items"
    assert site.asked == {}
