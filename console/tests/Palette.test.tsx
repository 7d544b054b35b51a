import { createMemoryHistory, createRootRoute, createRoute, createRouter, Outlet, RouterProvider } from "@tanstack/react-router";
import { cleanup, fireEvent, render, screen } from "@testing-library/react";
import { afterEach, beforeEach, expect, it, vi } from "vitest";

vi.stubGlobal("matchMedia", () => ({ matches: false, addEventListener: () => undefined, removeEventListener: () => undefined }));
const { Palette, usePalette } = await import("@/components/Palette");

function Shell() {
  const palette = usePalette();
  return (
    <>
      <Outlet />
      <Palette key={palette.openings} open={palette.isOpen} onClose={palette.hide} />
    </>
  );
}

async function show() {
  const root = createRootRoute({ component: Shell });
  const page = (path: string, text: string) => createRoute({ getParentRoute: () => root, path, component: () => <h1>{text}</h1> });
  const tree = root.addChildren([page("/", "Overview page"), page("/jobs", "Jobs page"), page("/jobs/$jobId", "One job"), page("/vector-stores", "Stores page")]);
  render(<RouterProvider router={createRouter({ routeTree: tree, history: createMemoryHistory() }) as never} />);
  await screen.findByText("Overview page");
  fireEvent.keyDown(window, { key: "k", ctrlKey: true });
  return screen.findByRole("combobox");
}

function names() {
  return screen.getAllByRole("option").map((option) => option.firstChild!.textContent);
}

beforeEach(() => {
  // jsdom has dialogs without showing them.
  HTMLDialogElement.prototype.showModal = function () {
    this.open = true;
  };
  HTMLDialogElement.prototype.close = function () {
    this.open = false;
  };
});
afterEach(cleanup);

it("lists the pages that exist, and opens the chosen one by Enter", async () => {
  const input = await show();
  expect(names()).toEqual(["Overview", "Jobs", "Vector stores", "Theme: light", "Theme: dark", "Theme: system"]);

  fireEvent.change(input, { target: { value: "st ve" } });
  expect(names()).toEqual(["Vector stores"]);
  fireEvent.keyDown(input, { key: "Enter" });

  await screen.findByText("Stores page");
  expect(screen.queryByRole("combobox")).toBeNull();
});

it("moves by the arrow keys, around the ends", async () => {
  const input = await show();
  const chosen = () => screen.getByRole("option", { selected: true }).firstChild!.textContent;
  fireEvent.keyDown(input, { key: "ArrowUp" });
  expect(chosen()).toBe("Theme: system");
  fireEvent.keyDown(input, { key: "ArrowDown" });
  fireEvent.keyDown(input, { key: "ArrowDown" });
  expect(chosen()).toBe("Jobs");
});

it("offers the page of whatever an id names", async () => {
  const input = await show();
  for (const [id, name] of [["ftjob-1", "Open the fine-tuning job ftjob-1"], ["vs_1", "Open the vector store vs_1"], ["ft:base:a", "Open the model ft:base:a"]]) {
    fireEvent.change(input, { target: { value: id } });
    expect(names()).toEqual([name]);
  }
});

it("opens an object by its id, and begins anew at each opening", async () => {
  const input = await show();
  fireEvent.change(input, { target: { value: " batch_12 " } });
  expect(names()).toEqual(["Open the job batch_12"]);
  fireEvent.keyDown(input, { key: "Enter" });
  await screen.findByText("One job");

  fireEvent.keyDown(window, { key: "K", metaKey: true });
  expect(await screen.findByRole("combobox")).toHaveProperty("value", "");
});
