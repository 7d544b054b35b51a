import { useState } from "react";

import { Snippet } from "@/components/Snippet";
import { State } from "@/components/State";

import { answerOf, preview, questionOf, resultsOf, textOf, type OutputItem } from "./evals";

/** Render a graded item: its question, answer, status and scores, and opened, the item, the answer and the results. */
export function OutputItemRow({ item }: { item: OutputItem }) {
  const [isOpen, setOpen] = useState(false);
  const results = resultsOf(item);
  return (
    <details className="item" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <span className="number">item {item.datasource_item_id}</span>
        <State state={item.status} />
        <Exchange item={item} />
        <span className="muted small break">
          {results.map(({ name, score, passed }) => `${name} ${score === null ? "no score" : Number(score.toFixed(3))}${passed ? "" : " ✗"}`).join(" · ")}
        </span>
      </summary>
      {isOpen && <ItemTexts item={item} />}
    </details>
  );
}

/** Render the beginnings of the question and the answer of an item. */
export function Exchange({ item }: { item: OutputItem }) {
  return (
    <span className="item-exchange break">
      <span>{preview(questionOf(item))}</span>
      <span className="muted">→ {preview(answerOf(item)) || "no answer"}</span>
    </span>
  );
}

/** Render the texts of an item: all of them as text, since models and users wrote them. */
export function ItemTexts({ item }: { item: OutputItem }) {
  const error: unknown = item.sample.error;
  return (
    <div className="stack item-texts">
      <Snippet label="Item" text={JSON.stringify(item.datasource_item, null, 2)} />
      <Snippet label="Answer" text={answerOf(item) || "(none)"} />
      {error ? <Snippet label="Error" text={textOf(error)} /> : null}
      <Snippet label="Results" text={JSON.stringify(item.results, null, 2)} />
    </div>
  );
}
