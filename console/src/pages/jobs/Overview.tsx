import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";

import type { Schema } from "@/api/client";
import { formatCount, formatDuration, formatNumber, formatRate, formatShare, words } from "@/components/format";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Section } from "@/components/Page";
import { Progress } from "@/components/Progress";
import { Prose } from "@/components/Prose";
import { Duration, Figure, Quantity } from "@/components/Quantity";
import { Snippet } from "@/components/Snippet";
import { Time } from "@/components/Time";

import { cut, SHORT } from "./cut";
import { InputErrors } from "./InputErrors";
import { isBatch, isLive, lifeline, type JobObject } from "./life";
import { Strip } from "./Strip";
import { useExplanation, WaitSentence } from "./WaitSentence";
import { waitOf } from "./waiting";

type Reason = Schema<"Reason">;

/** The codes of reasons that the sentence above them has said. */
const SAID = /^(model_loading$|waiting_for_)/;

/** Show how far a job is, why it waits, what became of its lines, and its settings. */
export function Overview({ job }: { job: JobObject }) {
  const reasons = useExplanation(job).data?.reasons ?? [];
  return (
    <>
      <Waiting job={job} reasons={reasons.filter((reason) => reason.type === "wait")} />
      <Life job={job} />
      <Pace job={job} />
      <Strip jobId={job.id} live={isLive(job)} />
      <InputErrors errors={job.errors?.data ?? []} />
      <Failures job={job} reasons={reasons} />
      <Answers job={job} />
      <Usage usage={job.usage} />
      <Settings job={job} />
    </>
  );
}

/** Say why the job cannot go on, and show what the server knows beyond that. */
function Waiting({ job, reasons }: { job: JobObject; reasons: readonly Reason[] }) {
  const wait = waitOf(job);
  if (wait === null && reasons.length === 0) return null;
  return (
    <div className="banner stack" role="status">
      {wait && (
        <strong>
          <WaitSentence wait={wait} />
        </strong>
      )}
      {reasons.map((reason) => (
        <div key={reason.code + reason.message} className="break">
          {!SAID.test(reason.code) && <Prose text={reason.message} />}
          {reason.examples?.map((example) => <p key={example}>{example}</p>)}
          {reason.advice && (
            <p>
              <Prose text={reason.advice} />
            </p>
          )}
        </div>
      ))}
    </div>
  );
}

function Life({ job }: { job: JobObject }) {
  return (
    <ol className="life" aria-label="States of the job">
      {lifeline(job).map(({ state, at, seconds }) => (
        <li key={state} className={seconds === null ? "life-step now" : "life-step"}>
          <strong>{words(state)}</strong>
          <span className="muted small">
            <Time at={at} />
          </span>
          {seconds !== null && <span className="muted small">for {seconds === 0 ? "less than 1 s" : formatDuration(seconds)}</span>}
        </li>
      ))}
      {isLive(job) && job.deadline !== null && (
        <li className="life-step ahead">
          <strong>deadline</strong>
          <span className="muted small">
            <Time at={job.deadline} />
          </span>
        </li>
      )}
    </ol>
  );
}

function Pace({ job }: { job: JobObject }) {
  const { progress, rate, eta_seconds, worked_seconds, queue_position } = job;
  if (!isLive(job) && progress.total === 0) return null;
  const figures: readonly (readonly [name: string, value: ReactNode, remark?: ReactNode])[] = [
    ["Done", <Quantity key="done" value={progress.completed + progress.failed} />, `of ${formatCount(progress.total, "line")}`],
    ["Failed", <Quantity key="failed" value={progress.failed} />, share(progress.failed, progress.completed + progress.failed)],
    ["Rate", rate && formatRate(rate.items_per_second, "lines"), rate && formatRate(rate.tokens_per_second, "tokens")],
    ["Time left", eta_seconds !== null && <Duration key="eta" seconds={eta_seconds} />, "at this rate"],
    ["Run time", worked_seconds !== null && <Duration key="worked" seconds={worked_seconds} />, "since its first lines"],
    ["Jobs before it", isLive(job) && queue_position !== null && <Quantity key="queue" value={queue_position} />, "of this project"],
  ];
  return (
    <Section title="Progress">
      <Card className="stack">
        <Progress label="Progress of the job" {...progress} withNumbers />
        <div className="figures">
          {figures.map(([name, value, remark]) =>
            value === null || value === false ? null : <Figure key={name} name={name} value={value} remark={remark} />,
          )}
        </div>
      </Card>
    </Section>
  );
}

function share(part: number, whole: number): string | null {
  return part > 0 ? `${formatShare(part / whole)} of those done` : null;
}

/** List the codes of failed lines with their counts, and examples of each. */
function Failures({ job, reasons }: { job: JobObject; reasons: readonly Reason[] }) {
  const errors = Object.entries(job.outcomes?.errors ?? {}).sort(([, first], [, second]) => second - first);
  if (errors.length === 0) return null;
  return (
    <Section title="Failed lines">
      <div className="stack">
        {errors.map(([code, count]) => {
          const reason = reasons.find((each) => each.type === "failure" && each.code === code);
          return (
            <Card key={code} className="stack">
              <div className="row">
                <strong>
                  <code>{code}</code>
                </strong>
                <span className="bad">{formatCount(count, "line")}</span>
                {isBatch(job) && !isLive(job) && (
                  <Link to="/jobs/$jobId" params={{ jobId: job.id }} search={{ tab: "results", code }}>
                    Show these lines
                  </Link>
                )}
              </div>
              {reason?.examples?.map((example, n) => (
                <p key={n} className="texts muted">
                  {cut(example, SHORT).shown}
                </p>
              ))}
            </Card>
          );
        })}
      </div>
    </Section>
  );
}

/** Count the answers by the reason for which they ended. */
function Answers({ job }: { job: JobObject }) {
  const reasons = Object.entries(job.outcomes?.finish_reasons ?? {}).sort(([, first], [, second]) => second - first);
  const all = reasons.reduce((sum, [, count]) => sum + count, 0);
  const empty = job.outcomes?.empty ?? 0;
  if (all === 0 && empty === 0) return null;
  return (
    <Section title="Finish reasons">
      <Card>
        <Facts
          facts={[
            ...reasons.map(([reason, count]) => [words(reason), `${formatNumber(count)} (${formatShare(count / all)})`] as const),
            ["empty answers", empty > 0 ? formatNumber(empty) : null],
          ]}
        />
      </Card>
    </Section>
  );
}

function Usage({ usage }: { usage: Schema<"Usage"> }) {
  const { cached_tokens: cached } = usage.input_tokens_details;
  const { reasoning_tokens: reasoning } = usage.output_tokens_details;
  if (usage.total_tokens === 0) return null;
  return (
    <Section title="Tokens">
      <Card>
        <Facts
          facts={[
            ["Input", <Quantity key="input" value={usage.input_tokens} />],
            ["of these from the cache", cached > 0 ? <Quantity key="cached" value={cached} /> : null],
            ["Output", <Quantity key="output" value={usage.output_tokens} />],
            ["of these reasoning", reasoning > 0 ? <Quantity key="reasoning" value={reasoning} /> : null],
            ["Total", <Quantity key="total" value={usage.total_tokens} />],
          ]}
        />
      </Card>
    </Section>
  );
}

function Settings({ job }: { job: JobObject }) {
  const metadata = Object.entries(job.metadata ?? {});
  const overrides = Object.keys(job.overrides ?? {});
  return (
    <Section title="Details">
      <Card className="stack">
        <Facts
          facts={[
            ["Model", job.model && <ObjectLink id={job.model} kind="model" />],
            ["Endpoint", job.endpoint],
            ["Input file", shownId(job.input_file_id)],
            ["Output file", shownId(job.output_file_id)],
            ["Error file", shownId(job.error_file_id)],
            ["Vector store", shownId(job.vector_store_id)],
            ["Dataset", shownId(job.dataset_id)],
            ["Evaluation", shownId(job.eval_id)],
            ["Run", job.eval_id && <RunLink evalId={job.eval_id} runId={job.id} />],
            ["Pipeline", job.kind === "pipeline" && <ObjectLink id={job.id} />],
            ["Fine-tuning job", job.kind === "finetuning" && <ObjectLink id={job.id} kind="tuning" />],
            ["Window", job.completion_window],
            ["Deadline", shownTime(job.deadline)],
            ["Begins at", shownTime(job.not_before)],
            ["Priority", formatNumber(job.priority)],
            ["Retry of", shownId(job.retry_of)],
            ["Schedule", shownId(job.schedule_id)],
            ["Created", shownTime(job.created_at)],
            ["Idempotency key", job.idempotency_key],
            ["Request", shownId(job.request_id)],
          ]}
        />
        {metadata.length > 0 && (
          <>
            <h3>Metadata</h3>
            <Facts facts={metadata} />
          </>
        )}
        {overrides.length > 0 && (
          <Snippet label="Fields that replace those of each line" text={JSON.stringify(job.overrides, null, 2)} />
        )}
      </Card>
    </Section>
  );
}

function shownId(id: string | null): ReactNode {
  return id && <ObjectLink withCopy id={id} />;
}

function shownTime(at: number | null): ReactNode {
  return at && <Time at={at} exact />;
}

function RunLink({ evalId, runId }: { evalId: string; runId: string }) {
  return (
    <Link to="/evals/$evalId/runs/$runId" params={{ evalId, runId }}>
      <code className="break">{runId}</code>
    </Link>
  );
}
