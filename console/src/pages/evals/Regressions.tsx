import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { get } from "@/api/get";
import { Loaded } from "@/components/Loaded";

import type { Comparison } from "./evals";
import { Exchange, ItemTexts } from "./OutputItemRow";

type Regression = Comparison["regressions"][number];

/** List the largest regressions from the other run to this one; opened, an item is shown with both answers. */
export function Regressions({ comparison, evalId }: { comparison: Comparison; evalId: string }) {
  if (comparison.regressions.length === 0) return <p className="muted">No item regressed.</p>;
  return (
    <div className="items">
      {comparison.regressions.map((regression, index) => (
        <RegressionRow key={regression.run_item_id} comparison={comparison} evalId={evalId} regression={regression} rank={index + 1} />
      ))}
    </div>
  );
}

interface RegressionRowProps {
  comparison: Comparison;
  evalId: string;
  regression: Regression;
  rank: number;
}

function RegressionRow({ comparison, evalId, regression, rank }: RegressionRowProps) {
  const [isOpen, setOpen] = useState(false);
  const item = useItem(evalId, comparison.run_id, regression.run_item_id);
  return (
    <details className="item" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <span className="number">{rank}.</span>
        {item.data ? <Exchange item={item.data} /> : <code className="break">{regression.run_item_id}</code>}
      </summary>
      {isOpen && (
        <div className="grid halves item-texts">
          <Side title="Other run" evalId={comparison.baseline_eval_id} runId={comparison.baseline_run_id} itemId={regression.baseline_item_id} />
          <Side title="This run" evalId={evalId} runId={comparison.run_id} itemId={regression.run_item_id} />
        </div>
      )}
    </details>
  );
}

function Side({ title, evalId, runId, itemId }: { title: string; evalId: string; runId: string; itemId: string }) {
  const item = useItem(evalId, runId, itemId);
  return (
    <section aria-label={title}>
      <h3>{title}</h3>
      <Loaded what="the item" query={item}>
        {(item) => <ItemTexts item={item} />}
      </Loaded>
    </section>
  );
}

function useItem(evalId: string, runId: string, itemId: string) {
  const path = { eval_id: evalId, run_id: runId, output_item_id: itemId };
  return useQuery({
    ...get("/v1/evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}", { path }),
    staleTime: Infinity,
  });
}
