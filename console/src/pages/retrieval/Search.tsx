import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState, type FormEvent } from "react";

import { api, take, type Schema } from "@/api/client";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { Field, Input, Select } from "@/components/Field";
import { formatName } from "@/components/format";
import { Loading } from "@/components/Loading";
import { Card } from "@/components/Page";
import { cut } from "@/pages/jobs/cut";

type Result = Schema<"SearchResult">;
type Scores = Schema<"ChunkScores">;
type Request = Schema<"SearchVectorStore">;

const LONGEST_TEXT = 4_000;
const FUSIONS = [
  ["", "The default"],
  ["relative", "Relative scores"],
  ["rrf", "Reciprocal ranks"],
] as const;
const COLUMNS: readonly (readonly [part: keyof Scores, label: string])[] = [
  ["vectors", "Vectors (cosine)"],
  ["words", "Words (BM25)"],
  ["fused", "Fused"],
  ["reranked", "Re-ranked"],
];

interface Options {
  limit: string;
  ranker: string;
  fusion: "" | "relative" | "rrf";
  vectorWeight: string;
  wordWeight: string;
}

interface SearchProps {
  storeId: string;
  /** The query of the page's address. */
  query: string;
  onQuery: (query: string) => void;
}

/** Search a store, and show beside each other what each ranking gave a result. */
export function Search({ storeId, query, onQuery }: SearchProps) {
  const [text, setText] = useState(query);
  const [form, setForm] = useState<Options>({ limit: "10", ranker: "", fusion: "", vectorWeight: "1", wordWeight: "0.3" });
  const [options, setOptions] = useState(form);
  const path = { vector_store_id: storeId };
  const body = bodyOf(query, options);
  const results = useQuery({
    queryKey: ["/v1/vector_stores/{vector_store_id}/search", path, body],
    queryFn: ({ signal }) => take(api.POST("/v1/vector_stores/{vector_store_id}/search", { params: { path }, body, signal })),
    enabled: query.trim() !== "",
    staleTime: 30_000,
    refetchOnWindowFocus: false,
  });

  function submit(event: FormEvent) {
    event.preventDefault();
    setOptions(form);
    if (text === query && form === options) void results.refetch();
    onQuery(text);
  }

  return (
    <div className="stack">
      <form className="stack" role="search" onSubmit={submit}>
        <Field label="Query">
          <Input required maxLength={4096} value={text} onChange={(event) => setText(event.target.value)} />
        </Field>
        <div className="filters">
          <OptionFields form={form} onChange={setForm} />
          <Button type="submit" tone="primary" busy={results.isFetching}>
            Search
          </Button>
        </div>
      </form>
      {results.isLoading && <Loading what="the results" />}
      {results.isError && <Failure title="The search did not work" error={results.error} onRetry={() => void results.refetch()} />}
      {results.data?.data.length === 0 && <Empty title="Nothing matches">Use other words, or look whether the documents are complete.</Empty>}
      {results.data && results.data.data.length > 0 && <Results results={results.data.data} />}
    </div>
  );
}

function OptionFields({ form, onChange }: { form: Options; onChange: (form: Options) => void }) {
  return (
    <>
      <Field label="Results">
        <Input type="number" min={1} max={50} required value={form.limit} onChange={(event) => onChange({ ...form, limit: event.target.value })} />
      </Field>
      <Field label="Re-ranking model">
        <Input placeholder="none" maxLength={255} value={form.ranker} onChange={(event) => onChange({ ...form, ranker: event.target.value })} />
      </Field>
      <Field label="Fusion">
        <Select value={form.fusion} options={FUSIONS} onChange={(fusion) => onChange({ ...form, fusion: fusion as Options["fusion"] })} />
      </Field>
      {form.fusion !== "" && (
        <>
          <Field label="Weight of vectors">
            <Input type="number" min={0} step="any" required value={form.vectorWeight} onChange={(event) => onChange({ ...form, vectorWeight: event.target.value })} />
          </Field>
          <Field label="Weight of words">
            <Input type="number" min={0} step="any" required value={form.wordWeight} onChange={(event) => onChange({ ...form, wordWeight: event.target.value })} />
          </Field>
        </>
      )}
    </>
  );
}

function bodyOf(query: string, { limit, ranker, fusion, vectorWeight, wordWeight }: Options): Request {
  const weights = { embedding_weight: Number(vectorWeight), text_weight: Number(wordWeight) };
  const hybrid_search = fusion === "" ? undefined : { ...weights, fusion };
  // Fields that are left out have their defaults.
  return { query, max_num_results: Number(limit), ranking_options: { ranker: ranker || "auto", hybrid_search }, include: ["chunk", "scores"] } as Request;
}

function Results({ results }: { results: readonly Result[] }) {
  const best = Object.fromEntries(COLUMNS.map(([part]) => [part, Math.max(0, ...results.map(({ scores }) => scores?.[part] ?? 0))]));
  return (
    <ol className="results">
      {results.map((result) => (
        <li key={`${result.file_id} ${result.chunk?.n}`}>
          <Card className="stack">
            <ResultHead result={result} />
            <dl className="scores">
              {COLUMNS.map(([part, label]) => (
                <div key={part}>
                  <dt>{label}</dt>
                  <dd>
                    <Score value={result.scores?.[part] ?? null} best={best[part] ?? 0} />
                  </dd>
                </div>
              ))}
            </dl>
            <ResultText text={result.content.map((part) => part.text).join("\n")} />
          </Card>
        </li>
      ))}
    </ol>
  );
}

function ResultHead({ result }: { result: Result }) {
  const { chunk } = result;
  const where = chunk ? [chunk.section?.join(" › "), chunk.page !== null && chunk.page !== undefined && `page ${chunk.page}`, `chunk ${chunk.n}`] : [];
  return (
    <p className="row">
      <Link to="/files/$fileId" params={{ fileId: result.file_id }} className="break">
        {formatName(result.filename)}
      </Link>
      <span className="muted small break">{where.filter(Boolean).join(" · ")}</span>
      <strong className="number">score {result.score.toFixed(3)}</strong>
    </p>
  );
}

/** Render a part of the score, with a bar relative to the best of all results. */
function Score({ value, best }: { value: number | null; best: number }) {
  if (value === null) return <span className="muted">–</span>;
  return (
    <>
      <span className="number">{value.toFixed(3)}</span>
      <span className="score-bar" aria-hidden>
        <span style={{ width: best > 0 ? `${(Math.max(0, value) / best) * 100}%` : 0 }} />
      </span>
    </>
  );
}

function ResultText({ text }: { text: string }) {
  const { shown, left } = cut(text, LONGEST_TEXT);
  return (
    <p className="excerpt" dir="auto">
      {shown}
      {left > 0 && " …"}
    </p>
  );
}
