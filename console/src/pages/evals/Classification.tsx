import { formatNumber } from "@/components/format";
import { Section } from "@/components/Page";
import { Figure } from "@/components/Quantity";
import { Table, type Column } from "@/components/Table";

import type { Run } from "./evals";

type Result = NonNullable<NonNullable<NonNullable<Run["per_testing_criteria_results"]>[number]["classification"]>>;

interface LabelRow {
  label: string;
  precision: number;
  recall: number;
  f1: number;
  support: number;
}

const COLUMNS: readonly Column<LabelRow>[] = [
  { id: "label", header: "Label", cell: (row) => <span className="break">{row.label}</span>, sort: (row) => row.label },
  { id: "precision", header: "Precision", cell: (row) => row.precision.toFixed(3), sort: (row) => row.precision, align: "end" },
  { id: "recall", header: "Recall", cell: (row) => row.recall.toFixed(3), sort: (row) => row.recall, align: "end" },
  { id: "f1", header: "F1", cell: (row) => row.f1.toFixed(3), sort: (row) => row.f1, align: "end" },
  { id: "support", header: "Items", cell: (row) => formatNumber(row.support), sort: (row) => row.support, align: "end", wide: true },
];

/** Labels up to which the confusion matrix is shown. */
const MATRIX = 12;

/** Show the metrics of a classification, by label, and what was answered instead of what. */
export function Classification({ criterion, result, kappa }: { criterion: string; result: Result; kappa?: number | null }) {
  const rows = Object.entries(result.labels).map(([label, metrics]): LabelRow => ({ label, ...metrics }));
  return (
    <Section title={`Classification: ${criterion}`}>
      <div className="stack">
        <div className="grid">
          <Figure name="Accuracy" value={result.accuracy.toFixed(3)} />
          <Figure name="Mean precision" value={result.macro_precision.toFixed(3)} />
          <Figure name="Mean recall" value={result.macro_recall.toFixed(3)} />
          <Figure name="Mean F1" value={result.macro_f1.toFixed(3)} />
          {typeof kappa === "number" && <Figure name="Cohen's kappa" value={kappa.toFixed(3)} />}
        </div>
        <Table label={`Labels of ${criterion}`} columns={COLUMNS} rows={rows} rowKey={(row) => row.label} />
        {rows.length <= MATRIX && <Matrix criterion={criterion} matrix={result.confusion_matrix} />}
      </div>
    </Section>
  );
}

function Matrix({ criterion, matrix: { labels, counts, other } }: { criterion: string; matrix: Result["confusion_matrix"] }) {
  return (
    // eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex -- a wide matrix is scrolled by keyboard
    <div className="table-scroll" tabIndex={0} role="region" aria-label={`Confusion matrix of ${criterion}`}>
      <table className="table">
        <thead>
          <tr>
            <th scope="col">expected \ predicted</th>
            {[...labels, "(other)"].map((label) => (
              <th key={label} scope="col" className="end">
                {label}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {labels.map((label, row) => (
            <tr key={label}>
              <th scope="row">{label}</th>
              {[...counts[row]!, other[row]!].map((count, column) => (
                <td key={labels[column] ?? ""} className={column === row ? "end good" : count > 0 ? "end bad" : "end"}>
                  {formatNumber(count)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
