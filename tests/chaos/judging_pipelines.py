"""Judge the pipelines of a campaign."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from openai import OpenAI

from tests.chaos.judging import await_jobs
from tests.chaos.pipeline_clients import KnownPipeline
from tests.support.oracle import Told, told_once

if TYPE_CHECKING:
    from tests.chaos.campaign import Campaign


def await_pipelines(campaign: "Campaign") -> None:
    """I1: every pipeline that was accepted ends."""
    await_jobs(campaign, campaign.load.pipeline_clients, "pipelines have not ended in time")


def judge_pipelines(campaign: "Campaign") -> None:
    """Judge all pipelines that have ended: one job for each step, every line answered, collected and graded once."""
    client, blame = campaign.load.client.sdk, campaign.journal.violation
    for pipeline in campaign.load.pipeline_clients.jobs:
        if pipeline.ended:
            blame(*faults(pipeline, fetch(client, pipeline)), *told(pipeline, campaign.load.told))


def fetch(client: OpenAI, pipeline: KnownPipeline) -> dict[str, Any]:
    """Return the jobs of the steps by name, and the counts of the run where the pipeline has completed."""
    path = f"/alias_moves?alias={pipeline.key}&order=asc"
    moves: Any = client.get(path, cast_to=object)
    jobs: dict[str, Any] = {"promotions": [(move["gate"] or {}).get("promotion") for move in moves["data"][1:]]}
    for name, step in pipeline.steps.items():
        graph: Any = client.get(f"/jobs/{step['id']}/graph", cast_to=object)
        waits_for = next(job["after"] for job in graph["jobs"] if job["id"] == step["id"])
        jobs[name] = [job_id for job_id in waits_for if not job_id.startswith("step_")]
    if pipeline.status == "completed":
        run = client.evals.runs.retrieve(pipeline.steps["check"]["job_id"], eval_id=pipeline.eval_id)
        jobs["counts"] = run.result_counts.to_dict()
    return jobs


def faults(pipeline: KnownPipeline, found: dict[str, Any]) -> Iterator[str]:
    """Say what is wrong with a pipeline that has ended."""
    if pipeline.status != "completed" and not (pipeline.cancelled and pipeline.status == "cancelled"):
        yield f"{pipeline.key} {pipeline.status}: {[step['error'] for step in pipeline.steps.values()]}"
    for name, step in pipeline.steps.items():
        if found[name] != [step["job_id"]] * bool(step["job_id"]):
            yield f"{pipeline.key}: the step {name} has made {found[name]}, and shows {step['job_id']}"
    promoted = [pipeline.steps["promote"]["job_id"]]
    if found["promotions"] != promoted and (pipeline.status == "completed" or found["promotions"]):
        yield f"{pipeline.key}: its promotions are {promoted}, and its alias was moved by {found['promotions']}"
    if pipeline.status == "completed":
        if any(step["status"] != "completed" for step in pipeline.steps.values()):
            yield f"{pipeline.key} has completed before its steps"
        counts = {name: found["counts"][name] for name in ("total", "passed")}
        if counts != dict.fromkeys(counts, pipeline.lines):
            yield f"{pipeline.key}: {counts} of {pipeline.lines} lines are graded"


def told(pipeline: KnownPipeline, hooks: Sequence[Told]) -> list[str]:
    """Return why the end of a pipeline was not told as one event, under one webhook-id."""
    return told_once(pipeline.key, pipeline.id, pipeline.status, f"pipeline.{pipeline.status}", hooks)
