import { useMutation } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useState, type FormEvent } from "react";

import { api, take, type Schema } from "@/api/client";
import { Button } from "@/components/Button";
import { Dialog } from "@/components/Dialog";
import { Failure } from "@/components/Failure";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { formatCount } from "@/components/format";

import { isBatch, type JobObject } from "./life";
import { useExplanation } from "./WaitSentence";

type Which = NonNullable<Schema<"RetryJob">["which"]>;

/** Run lines of an ended job again as a new job. */
export function Retry({ job, onClose }: { job: JobObject; onClose: () => void }) {
  const navigate = useNavigate();
  const [which, setWhich] = useState<Which>("failed");
  const [overrides, setOverrides] = useState("");
  const [window, setWindow] = useState("");
  const [priority, setPriority] = useState("");
  const problem = problemOf(overrides);
  const retry = useMutation({
    mutationFn: () => {
      const body = isBatch(job)
        ? { which, overrides: readOverrides(overrides), completion_window: window || null, priority: priority === "" ? null : Number(priority) }
        : undefined;
      const params = { path: { job_id: job.id } };
      return take(api.POST("/v1/jobs/{job_id}/retry", { params, body }));
    },
    onSuccess: (made) => {
      onClose();
      return navigate({ to: "/jobs/$jobId", params: { jobId: made.id } });
    },
  });

  function submit(event: FormEvent) {
    event.preventDefault();
    if (problem === null && !retry.isPending) retry.mutate();
  }

  return (
    <Dialog title="Run again as a new job" open onClose={onClose}>
      <form className="stack" onSubmit={submit}>
        <p>This job stays as it is.</p>
        <Permanent job={job} />
        {isBatch(job) && (
          <>
            <Field label="Lines">
              <Select value={which} onChange={(value) => setWhich(value as Which)} options={choices(job)} />
            </Field>
            <Field label="Fields to replace" hint="JSON that is laid over the body of each line." error={problem}>
              <TextArea placeholder='{"max_completion_tokens": 4096}' value={overrides} onChange={(event) => setOverrides(event.target.value)} />
            </Field>
            <div className="grid">
              <Field label="Window" hint="24h, 90m, 7d …">
                <Input placeholder={job.completion_window ?? "24h"} value={window} onChange={(event) => setWindow(event.target.value)} />
              </Field>
              <Field label="Priority" hint="Higher runs first.">
                <Input
                  type="number"
                  min={-100}
                  max={100}
                  placeholder={String(job.priority)}
                  value={priority}
                  onChange={(event) => setPriority(event.target.value)}
                />
              </Field>
            </div>
          </>
        )}
        {retry.isError && <Failure title="The job could not be run again" error={retry.error} />}
        <div className="actions end">
          <Button onClick={onClose}>Close</Button>
          <Button tone="primary" type="submit" busy={retry.isPending} disabled={problem !== null}>
            Retry
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

/** Name the errors that come again where the same requests are run. */
function Permanent({ job }: { job: JobObject }) {
  const reasons = useExplanation(job).data?.reasons ?? [];
  const permanent = reasons.filter((reason) => reason.is_permanent);
  if (permanent.length === 0) return null;
  return (
    <div className="banner">
      <p>These errors are permanent: the same requests fail again, unless fields are replaced.</p>
      <ul aria-label="Permanent errors">
        {permanent.map(({ code, count }) => (
          <li key={code}>
            <code>{code}</code> {count ? `(${formatCount(count, "line")})` : null}
          </li>
        ))}
      </ul>
    </div>
  );
}

function choices(job: JobObject): (readonly [which: Which, label: string])[] {
  const { failed, total } = job.progress;
  const cutOff = job.outcomes?.finish_reasons.length ?? 0;
  return [
    ["failed", `Those that failed or are missing (${formatCount(failed, "line")} failed)`],
    ["length", `Those that were cut off at the token limit (${formatCount(cutOff, "line")})`],
    ["all", `All (${formatCount(total, "line")})`],
  ];
}

function readOverrides(text: string): Record<string, unknown> {
  return text.trim() === "" ? {} : (JSON.parse(text) as Record<string, unknown>);
}

/** Return what is wrong with the fields to replace; null where nothing is. */
function problemOf(text: string): string | null {
  try {
    const value: unknown = readOverrides(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? null : "This is no JSON object.";
  } catch {
    return "This is not JSON.";
  }
}
