"""Counts of interactive requests: summed over writes, summarized by model, with percentiles as Prometheus has them."""

import pytest

from jobs.db.engine import Database
from jobs.inference import request_counts
from jobs.inference.request_counts import ERRORS, SECONDS, TOKENS, Counts, Distribution, RequestKey, bucket_of


def counts_of(project_id: str, minute: int, *seconds: float) -> Counts:
    """Return the counts of requests to the model `m` that took so long, with a token each."""
    counts: Counts = {}
    for value in seconds:
        key = RequestKey(project_id, minute, "m", "duration", bucket_of("duration", value))
        request_counts.add(counts, key, (1, value))
        request_counts.add(counts, RequestKey(project_id, minute, "m", TOKENS, "output"), (1, 1))
    return counts


@pytest.mark.dialects
def test_counts_of_two_processes_are_added(db: Database) -> None:
    with db.write() as session:
        request_counts.write(session, counts_of("p", 60, 0.2, 0.3))
        request_counts.write(session, {RequestKey("p", 60, "m", ERRORS, "no_worker"): (2, 2.0)})
    with db.write() as session:
        request_counts.write(session, counts_of("p", 60, 0.2))
        request_counts.write(session, counts_of("p", 120, 40))
        request_counts.write(session, counts_of("stranger", 60, 1))

    with db.read() as session:
        whole = request_counts.summarize(session, "p", 0, 180)["m"]
        first = request_counts.summarize(session, "p", 0, 120)["m"]
        others = request_counts.summarize(session, "p", 0, 180, model="another")

    assert (whole.requests, whole.errors, whole.tokens) == (6, {"no_worker": 2}, {"output": 4})
    assert whole.distributions["duration"].mean == pytest.approx(40.7 / 4)
    assert whole.distributions["first_token"].mean is None
    assert first.requests == 5
    assert others == {}


@pytest.mark.parametrize(
    ("buckets", "share", "value"),
    [
        ({}, 0.5, None),
        ({4: 10}, 0.5, 0.75),  # half way from 0.5 to 1
        ({2: 90, 7: 10}, 0.95, 7.5),  # half way from 5 to 10
        ({0: 1}, 1.0, 0.05),
        ({len(SECONDS): 3}, 0.5, 600),  # beyond the last bound
    ],
)
def test_quantile_is_interpolated_within_its_bucket(buckets: dict[int, int], share: float, value: float | None) -> None:
    values = Distribution(SECONDS, sum(buckets.values()), 0, buckets)

    assert values.quantile(share) == (None if value is None else pytest.approx(value))
