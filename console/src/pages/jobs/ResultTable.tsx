import type { Schema } from "@/api/client";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";

import { cut } from "./cut";
import { cellsOf, type TableColumns } from "./tabulate";

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
  const names = [...columns.inputs, ...(columns.fields.length > 0 ? columns.fields : ["answer"])];
  const head: Column<(typeof shown)[number]>[] = names.map((header, index) => ({
    id: String(index),
    header,
    cell: ({ cells }) => <span className="texts">{cut(cells[index] ?? "", CELL).shown}</span>,
  }));
  const state = ({ row }: (typeof shown)[number]) => <State state={row.error_code === null ? "succeeded" : "failed"} title={row.error_code ?? undefined} />;
  return <Table label="Results" columns={[...head, { id: "state", header: "Result", cell: state }]} rows={shown} rowKey={({ row }) => row.id} />;
}
