import { Link, type LinkProps } from "@tanstack/react-router";
import {
  createSortedRowModel,
  rowSortingFeature,
  sortFns,
  tableFeatures,
  useTable,
  type ColumnDef,
} from "@tanstack/react-table";
import { useMemo, type KeyboardEvent, type ReactNode } from "react";

/** A column of a table. */
export interface Column<Row> {
  id: string;
  header: string;
  cell: (row: Row) => ReactNode;
  /** The value that the column sorts by; without it, the column cannot be sorted. */
  sort?: (row: Row) => string | number | null;
  /** Numbers stand at the end of their cell. */
  align?: "end";
  /** Leave the column out on narrow screens. */
  wide?: boolean;
}

interface TableProps<Row> {
  /** What the table lists, for screen readers. */
  label: string;
  columns: readonly Column<Row>[];
  rows: readonly Row[];
  rowKey: (row: Row) => string;
  /** The page that a click on a row opens; the first cell becomes its link. */
  rowLink?: (row: Row) => Pick<LinkProps, "to" | "params" | "search">;
  /** The keys of the selected rows; with it, a box stands before each row. */
  selected?: ReadonlySet<string>;
  onSelect?: (selected: ReadonlySet<string>) => void;
}

const features = tableFeatures({ rowSortingFeature, sortedRowModel: createSortedRowModel(), sortFns });

/**
 * Render a table. A click on a column's head sorts the rows that are loaded; up and down move between the rows' links.
 */
export function Table<Row extends object>({ label, columns, rows, rowKey, rowLink, selected, onSelect }: TableProps<Row>) {
  const definitions = useMemo(
    () =>
      columns.map(
        (column): ColumnDef<typeof features, Row> => ({
          id: column.id,
          accessorFn: (row) => column.sort?.(row) ?? undefined,
          enableSorting: column.sort !== undefined,
          sortUndefined: "last",
        }),
      ),
    [columns],
  );
  const table = useTable({ features, columns: definitions, data: rows, getRowId: rowKey });
  return (
    <div className="table-scroll">
      {/* eslint-disable-next-line jsx-a11y/no-noninteractive-element-interactions -- the keys move the focus of links */}
      <table className="table" aria-label={label} onKeyDown={moveBetweenRows}>
        <thead>
          <tr>
            {selected && (
              <th scope="col">
                <Box
                  label="Select all"
                  checked={rows.length > 0 && rows.every((row) => selected.has(rowKey(row)))}
                  onChange={(checked) => onSelect?.(new Set(checked ? rows.map(rowKey) : []))}
                />
              </th>
            )}
            {table.getFlatHeaders().map((header, index) => {
              const column = columns[index]!;
              const direction = header.column.getIsSorted();
              return (
                <th
                  key={header.id}
                  scope="col"
                  className={classOf(column)}
                  aria-sort={direction === "asc" ? "ascending" : direction === "desc" ? "descending" : undefined}
                >
                  {header.column.getCanSort() ? (
                    <button type="button" className="sort" onClick={header.column.getToggleSortingHandler()}>
                      {column.header}
                      <span aria-hidden>{direction === "asc" ? " ↑" : direction === "desc" ? " ↓" : ""}</span>
                    </button>
                  ) : (
                    column.header
                  )}
                </th>
              );
            })}
          </tr>
        </thead>
        <tbody>
          {table.getRowModel().rows.map((row) => (
            <tr key={row.id} className={rowLink && "linked"}>
              {selected && (
                <td>
                  <Box
                    label={`Select ${row.id}`}
                    checked={selected.has(row.id)}
                    onChange={(checked) => onSelect?.(changed(selected, row.id, checked))}
                  />
                </td>
              )}
              {columns.map((column, index) => (
                <td key={column.id} className={classOf(column)}>
                  {index === 0 && rowLink ? (
                    <Link {...rowLink(row.original)} className="row-link">
                      {column.cell(row.original)}
                    </Link>
                  ) : (
                    column.cell(row.original)
                  )}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Render a box that selects a row; a finger can hit it. */
function Box({ label, checked, onChange }: { label: string; checked: boolean; onChange: (checked: boolean) => void }) {
  return (
    <label className="box">
      <input type="checkbox" aria-label={label} checked={checked} onChange={(event) => onChange(event.target.checked)} />
    </label>
  );
}

function changed(selected: ReadonlySet<string>, key: string, isSelected: boolean): ReadonlySet<string> {
  const next = new Set(selected);
  if (isSelected) next.add(key);
  else next.delete(key);
  return next;
}

function classOf<Row>(column: Column<Row>): string | undefined {
  return [column.align, column.wide && "wide"].filter(Boolean).join(" ") || undefined;
}

/** Move the focus from the link of one row to that of the next or the previous one. */
function moveBetweenRows(event: KeyboardEvent<HTMLTableElement>) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const links = [...event.currentTarget.querySelectorAll<HTMLElement>(".row-link")];
  const index = links.indexOf(document.activeElement as HTMLElement);
  if (step === undefined || index < 0) return;
  event.preventDefault();
  links[index + step]?.focus();
}
