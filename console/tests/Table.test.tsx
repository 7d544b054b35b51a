import { createMemoryHistory, createRootRoute, createRouter, RouterProvider } from "@tanstack/react-router";
import { cleanup, fireEvent, render, screen } from "@testing-library/react";
import type { ComponentProps } from "react";
import { afterEach, expect, it, vi } from "vitest";

import { Table, type Column } from "@/components/Table";

interface Row {
  id: string;
  lines: number | null;
}

const ROWS: Row[] = [
  { id: "b", lines: 2 },
  { id: "c", lines: null },
  { id: "a", lines: 10 },
];
const COLUMNS: Column<Row>[] = [
  { id: "id", header: "Job", cell: (row) => row.id, sort: (row) => row.id },
  { id: "lines", header: "Lines", cell: (row) => row.lines ?? "–", sort: (row) => row.lines, align: "end" },
  { id: "note", header: "Note", cell: () => "<b>text</b>" },
];

async function show(selection: Pick<ComponentProps<typeof Table>, "selected" | "onSelect"> = {}) {
  const root = createRootRoute({
    component: () => (
      <Table label="Jobs" columns={COLUMNS} rows={ROWS} rowKey={(row) => row.id} rowLink={(row) => ({ to: `/jobs/${row.id}` as "/" })} {...selection} />
    ),
  });
  const router = createRouter({ routeTree: root, history: createMemoryHistory() });
  render(<RouterProvider router={router as never} />);
  await screen.findByRole("table", { name: "Jobs" });
}

function order() {
  return screen.getAllByRole("link").map((link) => link.textContent);
}

afterEach(cleanup);

it("sorts numbers as numbers, and rows without a value last", async () => {
  await show();
  expect(order()).toEqual(["b", "c", "a"]);

  fireEvent.click(screen.getByRole("button", { name: "Lines" }));
  const first = order();
  fireEvent.click(screen.getByRole("button", { name: /Lines/ }));

  expect([first, order()]).toEqual([["a", "b", "c"], ["b", "a", "c"]]);
  expect(screen.getByRole("columnheader", { name: /Lines/ }).getAttribute("aria-sort")).toBe("ascending");
});

it("moves between the links of rows by the arrow keys, and renders texts as text", async () => {
  await show();
  const links = screen.getAllByRole("link");
  links[0]!.focus();

  fireEvent.keyDown(links[0]!, { key: "ArrowDown" });
  expect(document.activeElement).toBe(links[1]);
  fireEvent.keyDown(links[1]!, { key: "ArrowUp" });
  expect(document.activeElement).toBe(links[0]);

  expect(screen.getAllByText("<b>text</b>")).toHaveLength(3);
  expect(screen.queryByRole("button", { name: "Note" })).toBeNull();
});

it("selects rows one by one, and all of them", async () => {
  const onSelect = vi.fn<(selected: ReadonlySet<string>) => void>();
  await show({ selected: new Set(["a"]), onSelect });

  fireEvent.click(screen.getByRole("checkbox", { name: "Select b" }));
  fireEvent.click(screen.getByRole("checkbox", { name: "Select a" }));
  fireEvent.click(screen.getByRole("checkbox", { name: "Select all" }));

  expect(onSelect.mock.calls.map(([keys]) => [...keys])).toEqual([["a", "b"], [], ["b", "c", "a"]]);
});
