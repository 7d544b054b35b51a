import { keepPreviousData, useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi, useRouter } from "@tanstack/react-router";
import { useState } from "react";

import { api, type Schema } from "@/api/client";
import { download, save } from "@/api/download";
import { Button } from "@/components/Button";
import { Failure } from "@/components/Failure";
import { Field, Input, Select } from "@/components/Field";
import { formatNumber, words } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Loading } from "@/components/Loading";
import { Card } from "@/components/Page";
import { State } from "@/components/State";

import { answerText, cut, LONG, SHORT } from "./cut";
import { isBatch, isLive, type JobObject } from "./life";
import { ResultTable } from "./ResultTable";
import { columnsOf, namesOf, type TableColumns } from "./tabulate";
import type { JobSearch } from "./address";

type Row = Schema<"ResultRow">;

const route = getRouteApi("/jobs/$jobId");
const ROWS = 20;
const FORMATS = [
  ["jsonl", "JSON Lines"],
  ["csv", "CSV"],
  ["parquet", "Parquet"],
] as const;

/** Show the results of a job beside their requests, page by page; a job that goes on has only lines to download. */
export function Results({ job }: { job: JobObject }) {
  if (isLive(job) || !isBatch(job)) return <Unjoined job={job} />;
  return <Joined job={job} />;
}

function Unjoined({ job }: { job: JobObject }) {
  const fetching = useMutation({
    mutationFn: () => download(`/v1/jobs/${encodeURIComponent(job.id)}/results?follow=false`, `${job.id}.jsonl`),
  });
  return (
    <div className="stack">
      <p>
        {isLive(job)
          ? "Results stand here beside their requests when the job has ended. What is finished can be downloaded now, in no particular order."
          : "The results of this job can be downloaded."}
      </p>
      <div className="actions">
        <Button busy={fetching.isPending} onClick={() => fetching.mutate()}>
          Download {isLive(job) ? "finished lines" : "the results"}
        </Button>
      </div>
      {fetching.isError && <Failure title="The results could not be downloaded" error={fetching.error} />}
    </div>
  );
}

function Joined({ job }: { job: JobObject }) {
  const { outcome: state, code, custom_id, column, text = "", after } = route.useSearch();
  const [isTable, setTable] = useState(true);
  const path = { job_id: job.id };
  // The document of the API has no name for a parameter whose name holds the name of a column.
  const cells = column && { column: { [column]: text } };
  const query = { format: "json", limit: ROWS, state, code, custom_id, after, ...cells } as const;
  const page = useQuery({
    queryKey: ["/v1/jobs/{job_id}/results", path, query],
    queryFn: ({ signal }) => readPage(path, query, signal),
    placeholderData: keepPreviousData,
    staleTime: Infinity,
    // A page may hold many megabytes: it is not kept once it is out of sight.
    gcTime: 0,
  });
  const [first] = page.data?.data ?? [];
  const columns = first === undefined ? null : columnsOf(first);
  return (
    <div className="stack">
      <Filters job={job} />
      <ColumnFilter columns={columns} />
      {columns && (
        <label className="row">
          <input type="checkbox" checked={isTable} onChange={(event) => setTable(event.target.checked)} />
          <span>As a table</span>
        </label>
      )}
      <Downloads job={job} filters={{ state, code, custom_id, ...(column && { [`column[${column}]`]: text }), table: columns && isTable ? "true" : undefined }} />
      <Loaded what="the results" query={page}>
        {({ data, has_more, last_id }) => (
          <>
            {data.length === 0 && <p className="muted">{after ? "There are no more results." : "No result matches."}</p>}
            {columns && isTable ? <ResultTable rows={data} columns={columns} /> : data.map((row) => <Result key={row.id} row={row} />)}
            <Pages after={after} next={has_more ? last_id : null} busy={page.isPlaceholderData} />
          </>
        )}
      </Loaded>
    </div>
  );
}

type PageQuery = { format: "json"; limit: number; after?: string } & Pick<JobSearch, "code" | "custom_id"> & { state?: "succeeded" | "failed" };

/** Read the first page that has rows: where few lines match, the server ends pages before it has met one. */
async function readPage(path: { job_id: string }, query: PageQuery, signal: AbortSignal): Promise<Schema<"ResultPage">> {
  for (let after = query.after; ; ) {
    const answer = await api.GET("/v1/jobs/{job_id}/results", { params: { path, query: { ...query, after } }, signal });
    const page = answer.data as Schema<"ResultPage">;
    if (page.data.length > 0 || !page.has_more) return page;
    after = page.last_id;
  }
}

/** Select the results by the text in one column, where they are a table. Without columns no result matches. */
function ColumnFilter({ columns }: { columns: TableColumns | null }) {
  const search = route.useSearch();
  const navigate = route.useNavigate();
  const [column, setColumn] = useState(search.column ?? "");
  const [text, setText] = useState(search.text ?? "");
  const names = [...new Set([...(columns ? namesOf(columns) : []), ...(search.column ? [search.column] : [])])];
  if (names.length === 0) return null;
  const apply = () => void navigate({ search: { ...search, after: undefined, column: column || undefined, text: column ? text || undefined : undefined } });
  return (
    <form
      className="filters"
      role="search"
      aria-label="Column"
      onSubmit={(event) => {
        event.preventDefault();
        apply();
      }}
    >
      <Field label="Column">
        <Select value={column} onChange={setColumn} options={[["", "All"], ...names.map((name) => [name, name] as const)]} />
      </Field>
      <Field label="is">
        <Input type="search" value={text} onChange={(event) => setText(event.target.value)} />
      </Field>
      <Button type="submit" className="fit">
        Filter
      </Button>
    </form>
  );
}

function Filters({ job }: { job: JobObject }) {
  const search = route.useSearch();
  const navigate = route.useNavigate();
  const [customId, setCustomId] = useState(search.custom_id ?? "");
  const change = (changes: JobSearch) => void navigate({ search: { ...search, after: undefined, ...changes } });
  const codes = [...new Set([...Object.keys(job.outcomes?.errors ?? {}), ...(search.code ? [search.code] : [])])];
  return (
    <form
      className="filters"
      role="search"
      aria-label="Results"
      onSubmit={(event) => {
        event.preventDefault();
        change({ custom_id: customId.trim() || undefined });
      }}
    >
      <Field label="Result">
        <Select
          value={search.outcome ?? ""}
          onChange={(outcome) => change({ outcome: (outcome || undefined) as JobSearch["outcome"] })}
          options={[
            ["", "All"],
            ["succeeded", "Succeeded"],
            ["failed", "Failed"],
          ]}
        />
      </Field>
      <Field label="Error code">
        <Select
          value={search.code ?? ""}
          onChange={(code) => change({ code: code || undefined })}
          options={[["", "All"], ...codes.map((code) => [code, code] as const)]}
        />
      </Field>
      <Field label="custom_id">
        <Input type="search" value={customId} onChange={(event) => setCustomId(event.target.value)} />
      </Field>
      <Button type="submit" className="fit">
        Find
      </Button>
    </form>
  );
}

function Downloads({ job, filters }: { job: JobObject; filters: Readonly<Record<string, string | undefined>> }) {
  const given = Object.entries(filters).filter((pair): pair is [string, string] => pair[1] !== undefined);
  const isSelected = given.some(([name]) => name !== "table");
  const fetching = useMutation({
    mutationFn: (format: string) => {
      const query = new URLSearchParams([["format", format], ["join", "true"], ...given]);
      return download(`/v1/jobs/${encodeURIComponent(job.id)}/results?${query}`, `${job.id}.${format}`);
    },
  });
  return (
    <>
      <div className="row">
        <span className="muted">
          Download {isSelected ? "the selected results" : "all results"} {filters.table ? "as a table" : "with their requests"}:
        </span>
        <div className="actions">
          {FORMATS.map(([format, name]) => (
            <Button key={format} busy={fetching.isPending} onClick={() => fetching.mutate(format)}>
              {name}
            </Button>
          ))}
        </div>
      </div>
      {fetching.isPending && <Loading what="the file" />}
      {fetching.isError && <Failure title="The results could not be downloaded" error={fetching.error} />}
    </>
  );
}

function Pages({ after, next, busy }: { after: string | undefined; next: string | null; busy: boolean }) {
  const search = route.useSearch();
  const navigate = route.useNavigate();
  const router = useRouter();
  if (after === undefined && next === null) return null;
  return (
    <nav className="actions" aria-label="Pages of results">
      {after !== undefined && <Button onClick={() => void navigate({ search: { ...search, after: undefined } })}>First page</Button>}
      {after !== undefined && <Button onClick={() => router.history.back()}>Back</Button>}
      {next !== null && (
        <Button busy={busy} onClick={() => void navigate({ search: { ...search, after: next }, resetScroll: true })}>
          Next page
        </Button>
      )}
    </nav>
  );
}

function Result({ row }: { row: Row }) {
  const answer = answerText(row.answer);
  return (
    <Card className="stack">
      <div className="row">
        <strong className="break">
          <code>{cut(row.custom_id, SHORT).shown}</code>
        </strong>
        <State state={row.error_code === null ? "succeeded" : "failed"} />
        {row.finish_reason && <span className="muted">ended by {words(row.finish_reason)}</span>}
        {row.input_tokens !== null && (
          <span className="muted">
            {formatNumber(row.input_tokens)} + {formatNumber(row.output_tokens ?? 0)} tokens
          </span>
        )}
        {row.duplicate_of && <span className="muted break">same as {row.duplicate_of}</span>}
        <Button tone="plain" onClick={() => save(new Blob([JSON.stringify(row, null, 2)], { type: "application/json" }), "line.json")}>
          Save this line
        </Button>
      </div>
      <div className="grid halves">
        <Text title="Request" text={row.prompt ?? JSON.stringify(row.request)} />
        {row.error_code === null ? (
          <Text title="Answer" text={answer ?? JSON.stringify(row.response)} />
        ) : (
          <Text title={`Error ${row.error_code}`} text={row.error_message ?? ""} tone="bad" />
        )}
      </div>
    </Card>
  );
}

/** Render a text of a user or of a model as plain text. A long one is cut, since a page of megabytes stands still. */
function Text({ title, text, tone = "" }: { title: string; text: string; tone?: string }) {
  const [limit, setLimit] = useState(SHORT);
  const { shown, left } = cut(text, limit);
  return (
    <section aria-label={title}>
      <h2 className={`small muted ${tone}`}>{title}</h2>
      <p className="texts" dir="auto">
        {shown}
        {left > 0 && <span className="muted"> … and {formatNumber(left)} more characters</span>}
      </p>
      {left > 0 && limit === SHORT && (
        <Button tone="plain" onClick={() => setLimit(LONG)}>
          Show more
        </Button>
      )}
      {left > 0 && limit === LONG && <p className="muted small">The whole text is in the saved line and in the downloads.</p>}
    </section>
  );
}
