import { useState } from "react";

import { Snippet } from "@/components/Snippet";
import { State } from "@/components/State";

import { answerOf, resultsOf, textOf, type OutputItem } from "./evals";

/** Characters of an item or an answer that its row shows. */
const PREVIEW = 120;

/** Render a graded item: its number, status and scores, and opened, the item, the answer and the results. */
export function OutputItemRow({ item }: { item: OutputItem }) {
  const [isOpen, setOpen] = useState(false);
  const results = resultsOf(item);
  return (
    <details className="item" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <span className="number">item {item.datasource_item_id}</span>
        <State state={item.status} />
        <span className="break">{preview(answerOf(item) || JSON.stringify(item.datasource_item))}</span>
        <span className="muted small break">
          {results.map(({ name, score, passed }) => `${name} ${score === null ? "no score" : Number(score.toFixed(3))}${passed ? "" : " ✗"}`).join(" · ")}
        </span>
      </summary>
      {isOpen && <ItemTexts item={item} />}
    </details>
  );
}

function preview(text: string): string {
  const line = text.slice(0, PREVIEW).replaceAll(/\s+/g, " ");
  return text.length > PREVIEW ? `${line} …` : line;
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
