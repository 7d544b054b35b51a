import { getRouteApi } from "@tanstack/react-router";
import { useEffect } from "react";

import { refresh, usePages } from "@/api/get";
import { Field, Select } from "@/components/Field";
import { Listed } from "@/components/Listed";
import { Section } from "@/components/Page";

import type { ItemStatus } from "./address";
import { hasEnded, type Run } from "./evals";
import { OutputItemRow } from "./OutputItemRow";

const route = getRouteApi("/evals/$evalId/runs/$runId");
const PATH = "/v1/evals/{eval_id}/runs/{run_id}/output_items";
const PAGE = 20;
const POLL = 4_000;
const STATUSES = [
  ["", "All"],
  ["pass", "Passed"],
  ["fail", "Failed"],
  ["error", "Errored"],
] as const;

/** List the graded items of a run page by page, of one status or all. */
export function OutputItems({ run }: { run: Run }) {
  const { status } = route.useSearch();
  const navigate = route.useNavigate();
  const path = { eval_id: run.eval_id, run_id: run.id };
  const query = { status, limit: PAGE };
  const ended = hasEnded(run);
  const items = usePages(PATH, { path, query }, { refetchInterval: !ended && POLL });
  useEffect(() => {
    if (ended) void refresh(PATH); // what was read last may be from before the end
  }, [ended]);
  return (
    <Section title="Items">
      <div className="filters">
        <Field label="Status">
          <Select
            value={status ?? ""}
            options={STATUSES}
            onChange={(chosen) =>
              void navigate({ search: (search) => ({ ...search, status: chosen === "" ? undefined : (chosen as ItemStatus) }), replace: true })
            }
          />
        </Field>
      </div>
      <Listed what="the items" query={items} empty={<p className="muted">{status ? "No item has this status." : "No item is graded yet."}</p>}>
        <div className="items">
          {items.rows.map((item) => (
            <OutputItemRow key={item.id} item={item} />
          ))}
        </div>
      </Listed>
    </Section>
  );
}
