"""A retry of an ingestion, and what else the ledger's own view of one says."""

from tests.support.ingestion import Works, refuses

PROSE = "The kiwi is a bird that cannot fly. " * 40
OTHER = "A volcano is a mountain that opens to molten rock. " * 40


def test_retry_ingests_only_failed_files(inline: Works) -> None:
    store = inline.store()
    good, bad = inline.upload(PROSE), inline.upload(OTHER)
    inline.engine.fault = refuses("volcano")
    batch = inline.batch(store, good, bad, attributes={"year": 2026}, webhook={"url": "https://192.0.43.8/hook"})
    inline.drive()
    assert inline.statuses(store)[bad] == ("failed", "server_error")
    inline.engine.fault = None
    before = len(inline.engine.asked)

    again = inline.ok(f"/jobs/{batch}/retry")
    inline.drive()

    assert (again["kind"], again["retry_of"], again["progress"]["total"]) == ("ingestion", batch, 1)
    assert again["id"].startswith("vsfb_")
    assert inline.job(again["id"]).webhook_secret == inline.job(batch).webhook_secret is not None
    assert inline.statuses(store) == {good: ("completed", None), bad: ("completed", None)}
    assert all("volcano" in text for texts in inline.engine.asked[before:] for text in texts)
    assert inline.search(store, "molten rock")[0].attributes == {"year": 2026}
    inline.purge()
    inline.assert_tidy(store)


def test_retry_is_refused_without_failed_files_or_store(inline: Works) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE))
    inline.drive()
    whole = inline.api.post(f"/v1/jobs/{batch}/retry")
    failed = inline.batch(store, inline.upload(b"\x7fELF\x00\x01", "a.bin"))
    inline.drive()
    inline.delete(f"/vector_stores/{store}")

    gone = inline.api.post(f"/v1/jobs/{failed}/retry")

    assert (whole.status_code, whole.json()["error"]["code"]) == (400, "nothing_to_retry")
    assert gone.status_code == 404


def test_an_ingestion_has_no_lines_to_show(inline: Works) -> None:
    batch = inline.batch(inline.store(), inline.upload(PROSE))
    inline.drive()

    answer = inline.api.get(f"/v1/jobs/{batch}/results")

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_results")
    shown = inline.get(f"/jobs/{batch}")
    assert (shown["kind"], shown["state"], shown["progress"]["completed"]) == ("ingestion", "succeeded", 1)
