import { useQuery } from "@tanstack/react-query";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { formatCount, formatNumber } from "@/components/format";
import { Section } from "@/components/Page";

const PARTS = 120;
const REFRESH = 5_000;

/** Show the shards of a job as a strip in the order of the input: done, failed, being run, to come. */
export function Strip({ jobId, live }: { jobId: string; live: boolean }) {
  const path = { job_id: jobId };
  const query = { parts: PARTS };
  const shards = useQuery({
    ...get("/v1/jobs/{job_id}/shards", { path, query }),
    refetchInterval: live && REFRESH,
  });
  const parts = shards.data?.data ?? [];
  if (parts.length === 0) return null;
  const sum = (count: (part: Part) => number) => parts.reduce((total, part) => total + count(part), 0);
  const text = `${formatCount(shards.data!.shards, "shard")}: ${formatNumber(sum((part) => part.ended))} done, ${formatNumber(sum((part) => part.running))} running`;
  return (
    <Section title="Shards">
      <p className="muted small">{text}. The strip shows the input from its first line to its last.</p>
      <div className="strip" role="img" aria-label={text}>
        {parts.map((part) => (
          <span
            key={part.first_line}
            className={part.running > 0 ? "strip-part running" : "strip-part"}
            style={{ flexGrow: part.lines }}
            title={describe(part)}
          >
            <span className="completed" style={{ width: `${(100 * (part.done - part.failed)) / part.lines}%` }} />
            <span className="failed" style={{ width: `${(100 * part.failed) / part.lines}%` }} />
          </span>
        ))}
      </div>
    </Section>
  );
}

type Part = Schema<"ShardPart">;

function describe(part: Part): string {
  const lines = `Lines ${formatNumber(part.first_line + 1)} to ${formatNumber(part.first_line + part.lines)}`;
  const failed = part.failed > 0 ? `, ${formatNumber(part.failed)} failed` : "";
  return `${lines}: ${formatNumber(part.done)} done${failed}${part.running > 0 ? ", running" : ""}`;
}
