"""A retry of an ingestion, and what else the ledger's own view of one says."""

from tests.support.ingesting import Works, refuses

PROSE = "The kiwi is a bird that cannot fly. " * 40
OTHER = "A volcano is a mountain that opens to molten rock. " * 40


def test_a_retry_brings_in_what_failed_and_nothing_else(mill: Works) -> None:
    store = mill.store()
    good, bad = mill.upload(PROSE), mill.upload(OTHER)
    mill.engine.fault = refuses("volcano")
    batch = mill.batch(store, good, bad, attributes={"year": 2026}, webhook={"url": "https://192.0.43.8/hook"})
    mill.drive()
    assert mill.statuses(store)[bad] == ("failed", "server_error")
    mill.engine.fault = None
    before = len(mill.engine.asked)

    again = mill.ok(f"/jobs/{batch}/retry")
    mill.drive()

    assert (again["kind"], again["retry_of"], again["progress"]["total"]) == ("ingestion", batch, 1)
    assert again["id"].startswith("vsfb_")
    assert mill.job(again["id"]).webhook_secret == mill.job(batch).webhook_secret is not None
    assert mill.statuses(store) == {good: ("completed", None), bad: ("completed", None)}
    assert all("volcano" in text for texts in mill.engine.asked[before:] for text in texts)
    assert mill.search(store, "molten rock")[0].attributes == {"year": 2026}
    mill.purge()
    mill.assert_tidy(store)


def test_nothing_is_retried_where_nothing_failed_or_the_store_is_gone(mill: Works) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE))
    mill.drive()
    whole = mill.api.post(f"/v1/jobs/{batch}/retry")
    failed = mill.batch(store, mill.upload(b"\x7fELF\x00\x01", "a.bin"))
    mill.drive()
    mill.delete(f"/vector_stores/{store}")

    gone = mill.api.post(f"/v1/jobs/{failed}/retry")

    assert (whole.status_code, whole.json()["error"]["code"]) == (400, "nothing_to_retry")
    assert gone.status_code == 404


def test_an_ingestion_has_no_lines_to_show(mill: Works) -> None:
    batch = mill.batch(mill.store(), mill.upload(PROSE))
    mill.drive()

    answer = mill.api.get(f"/v1/jobs/{batch}/results")

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_results")
    shown = mill.get(f"/jobs/{batch}")
    assert (shown["kind"], shown["state"], shown["progress"]["completed"]) == ("ingestion", "succeeded", 1)
