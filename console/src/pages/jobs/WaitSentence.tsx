import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import { get } from "@/api/get";
import { formatDuration } from "@/components/format";
import { Prose } from "@/components/Prose";
import { useNow } from "@/components/Time";

import { isLive, type JobObject } from "./life";
import { waitOf, type Wait } from "./waiting";

/** Milliseconds between two explanations of a job that goes on: the server reads examples from its results. */
const EXPLAINED_AGAIN = 15_000;

/** Use the server's explanation of a job, which is read again while the job goes on. */
export function useExplanation(job: JobObject, enabled = true) {
  const explain = get("/v1/jobs/{job_id}/explain", { path: { job_id: job.id } });
  return useQuery({
    ...explain,
    queryKey: [...explain.queryKey, job.state, job.waiting_for],
    refetchInterval: isLive(job) && EXPLAINED_AGAIN,
    enabled,
  });
}

/** Say in one sentence why a job cannot go on, with the page where something can be done. */
export function WaitSentence({ wait: { text, since, action } }: { wait: Wait }) {
  const now = useNow();
  return (
    <span className="break">
      Waiting: <Prose text={text} />
      {since !== null && (
        <>
          , <time>{formatDuration(Math.max(now - since, 0))}</time>
        </>
      )}
      .{" "}
      {action && <Link {...action.link}>{action.label}</Link>}
    </span>
  );
}

/** Say why a job of a list cannot go on. The server is asked about one that gives no reason itself. */
export function WaitOfJob({ job }: { job: JobObject }) {
  const wait = waitOf(job);
  const isUnexplained = job.waiting_for === null && job.model_status === null;
  const explanation = useExplanation(job, isUnexplained);
  if (wait === null) return null;
  const reason = explanation.data?.reasons.find((each) => each.type === "wait")?.message;
  return <WaitSentence wait={{ ...wait, text: reason ?? wait.text }} />;
}
