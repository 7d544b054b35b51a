"""The metrics that operators alert on."""

from importlib.metadata import version
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.health import alert_metrics
from jobs.clock import now
from jobs.fleet.leadership import ELECTED_AT, Leadership
from jobs.fleet.tables import Measure, Meta
from jobs.ledger import measures
from jobs.ledger.tables import Job
from jobs.platform.storage import Space
from jobs.webhooks.deliveries import PARKED_UNTIL
from jobs.webhooks.tables import Delivery
from tests.unit.api.batches.test_batches import create

Samples = dict[tuple[str, str], float]


def scrape(nobody: TestClient) -> Samples:
    """Return the values by name and label's value; the labels here are one at most."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(nobody.get("/metrics").text)
        for sample in family.samples
    }


def test_failures_are_counted_by_reason(app: FastAPI, nobody: TestClient) -> None:
    with app.state.services.db.write() as session:
        session.add(Measure(name="database", label="unavailable", le="+Inf", count=3, seconds=0.0))
        session.add(Measure(name="storage", label="full", le="+Inf", count=2, seconds=0.0))

    samples = scrape(nobody)

    assert samples["nightmill_database_failures_total", "unavailable"] == 3
    assert samples["nightmill_storage_failures_total", "full"] == 2


def test_metrics_show_leading_dispatcher_and_election_time(app: FastAPI, nobody: TestClient) -> None:
    services = app.state.services
    leading = Leadership(services.config, services.db)
    assert leading.take()
    with services.db.write() as session:
        session.add(Meta(key=ELECTED_AT, value="1796143457.5"))
        measures.count(session, measures.ELECTIONS, "", 1)

    samples = scrape(nobody)
    leading.drop()

    assert samples["nightmill_dispatcher_leads", ""] == samples["nightmill_dispatcher_elections_total", ""] == 1
    assert samples["nightmill_dispatcher_elected_timestamp_seconds", ""] == 1796143457.5


def test_without_a_dispatcher_none_leads(nobody: TestClient) -> None:
    samples = scrape(nobody)

    assert samples["nightmill_dispatcher_leads", ""] == samples["nightmill_dispatcher_elections_total", ""] == 0
    assert ("nightmill_dispatcher_elected_timestamp_seconds", "") not in samples


def test_ages_are_those_of_live_jobs_and_of_deliveries_that_are_due(
    app: FastAPI, client: TestClient, nobody: TestClient
) -> None:
    create(client, "f")
    with app.state.services.db.write() as session:
        session.query(Job).update({"created_at": now() - 500})
        for number, due_at in enumerate([now() - 100, now() - 50, now() + 100, PARKED_UNTIL]):
            session.add(
                Delivery(id=f"wh_{number}", project_id="p", event_id="evt", due_at=due_at, created_at=now() - 1000)
            )

    samples = scrape(nobody)

    kinds = {label: value for (name, label), value in samples.items() if name == "nightmill_job_oldest_seconds"}
    assert len(kinds) == 1
    assert 500 <= next(iter(kinds.values())) < 800
    assert 100 <= samples["nightmill_webhook_oldest_due_seconds", ""] < 400


def test_free_space_and_version_are_those_of_the_process_that_answers(
    nobody: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_metrics, "space_at", lambda _path: Space(bytes=7, inodes=3))

    samples = scrape(nobody)

    assert samples["nightmill_disk_free_bytes", "data"] == samples["nightmill_disk_free_bytes", "files"] == 7
    assert samples["nightmill_disk_free_inodes", "data"] == 3
    assert samples["nightmill_build_info", version("nightmill")] == 1
    assert ("process_start_time_seconds", "") in samples


def test_free_inodes_metric_is_absent_for_dynamic_inode_file_system(
    nobody: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_metrics, "space_at", lambda _path: Space(bytes=7, inodes=None))

    assert ("nightmill_disk_free_inodes", "data") not in scrape(nobody)


def test_each_metric_has_its_row_in_the_guide(nobody: TestClient) -> None:
    guide = (Path(__file__).parents[4] / "docs/operate/monitoring.md").read_text()
    names = {
        family.name + ("_total" if family.type == "counter" else "_info" if family.type == "info" else "")
        for family in text_string_to_metric_families(nobody.get("/metrics").text)
        if family.name.startswith("nightmill_") and not family.name.endswith("_created")
    }

    assert {name for name in names if f"`{name}`" not in guide and f"`{name}, " not in guide} == set()
