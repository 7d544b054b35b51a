import { createMemoryHistory, createRootRoute, createRouter, RouterProvider } from "@tanstack/react-router";
import { cleanup, render, screen } from "@testing-library/react";
import type { ReactNode } from "react";
import { afterEach, expect, it } from "vitest";

import { LinkedJson, ObjectLink } from "@/components/ObjectLink";

async function show(content: ReactNode) {
  const root = createRootRoute({ component: () => <p>shown: {content}</p> });
  render(<RouterProvider router={createRouter({ routeTree: root, history: createMemoryHistory() }) as never} />);
  return screen.findByText(/^shown/);
}

function links() {
  return screen.queryAllByRole("link").map((link) => [link.textContent, link.getAttribute("href")]);
}

afterEach(cleanup);

it("leads from an id to the page of its object", async () => {
  const ids = ["batch_1", "ftjob-1", "file-1", "vs_1", "eval_1", "evalrun_1", "vsfb_1", "resp_1", "sampling_1", "we_1", "sched_1", "ds_1", "dsversion_1", "pipe_1", "promo_1", "driftmon_1", "driftcheck_1"];
  await show(ids.map((id) => <ObjectLink key={id} id={id} />));
  expect(links()).toEqual([
    ["batch_1", "/jobs/batch_1"],
    ["ftjob-1", "/fine-tuning/ftjob-1"],
    ["file-1", "/files/file-1"],
    ["vs_1", "/vector-stores/vs_1"],
    ["eval_1", "/evals/eval_1"],
    ["evalrun_1", "/jobs/evalrun_1"],
    ["vsfb_1", "/jobs/vsfb_1"],
    ["resp_1", "/jobs/resp_1"],
    ["sampling_1", "/jobs/sampling_1"],
    ["we_1", "/webhooks/we_1"],
    ["sched_1", "/schedules"],
    ["ds_1", "/datasets/ds_1"],
    ["dsversion_1", "/jobs/dsversion_1"],
    ["pipe_1", "/pipelines/pipe_1"],
    ["promo_1", "/promotions/promo_1"],
    ["driftmon_1", "/drift/driftmon_1"],
    ["driftcheck_1", "/jobs/driftcheck_1"],
  ]);
});

it("leads to the page of a kind that no id tells", async () => {
  await show(<ObjectLink id="tiny" kind="model" />);
  expect(links()).toEqual([["tiny", "/models?model=tiny"]]);
});

it("shows an id without a page as it is", async () => {
  await show(<ObjectLink id="req_1" withCopy />);
  expect(links()).toEqual([]);
  expect(screen.getByText("req_1")).toBeTruthy();
});

it("finds the ids in an event's data, and keeps every character of it", async () => {
  const text = JSON.stringify({ file: "file-1", note: 'a "vs_1" <b>', n: 1 });
  const shown = await show(<LinkedJson text={text} />);
  expect(shown.textContent).toBe(`shown: ${text}`);
  expect(links()[0]).toEqual(["file-1", "/files/file-1"]);
});
