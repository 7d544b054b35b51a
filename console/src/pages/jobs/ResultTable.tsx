import type { Schema } from "@/api/client";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";

import { cut } from "./cut";
import { cellsOf, namesOf, type TableColumns } from "./tabulate";

type Row = Schema<"ResultRow">;

/** Characters of a cell that are shown. */
const CELL = 300;

interface ResultTableProps {
  rows: readonly Row[];
  columns: TableColumns;
}

/** Render results as the table that was submitted, with the fields of the answers beside its columns. */
export function ResultTable({ rows, columns }: ResultTableProps) {
  const shown = rows.map((row) => ({ row, cells: cellsOf(row, columns) }));
  const head: Column<(typeof shown)[number]>[] = namesOf(columns).map((header, index) => ({
    id: String(index),
    header,
    cell: ({ cells }) => <span className="texts">{cut(cells[index] ?? "", CELL).shown}</span>,
  }));
  const outcome: (typeof head)[number] = { id: "outcome", header: "Result", cell: ({ row }) => <Outcome row={row} /> };
  return <Table label="Results" columns={[...head, outcome]} rows={shown} rowKey={({ row }) => row.id} />;
}

function Outcome({ row }: { row: Row }) {
  if (row.error_code === null) return <State state="succeeded" />;
  return (
    <span className="row">
      <State state="failed" />
      <code>{row.error_code}</code>
      <span className="texts">{cut(row.error_message ?? "", CELL).shown}</span>
    </span>
  );
}
