import { createRootRoute, createRoute, createRouter, lazyRouteComponent, Link, type ErrorComponentProps } from "@tanstack/react-router";
import type { ComponentType } from "react";

import { reachServer } from "@/api/client";
import { Empty } from "@/components/Empty";
import { Failure, messageOf } from "@/components/Failure";
import { Layout } from "@/components/Layout";
import { Loading } from "@/components/Loading";
import { Page } from "@/components/Page";
import { newBatchSearch } from "@/pages/batches/address";
import { datasetSearch } from "@/pages/datasets/address";
import { filesSearch } from "@/pages/files/address";
import { newEvalSearch, runSearch } from "@/pages/evals/address";
import { newTuningSearch, tuningSearch } from "@/pages/finetuning/address";
import { modelsSearch } from "@/pages/fleet/models/address";
import { logsSearch, playgroundSearch } from "@/pages/inference/address";
import { jobSearch, jobsSearch } from "@/pages/jobs/address";
import { monitorSearch } from "@/pages/monitoring/address";
import { organizationSearch, projectSearch } from "@/pages/organization/address";
import { overviewSearch } from "@/pages/overview/address";
import { pipelinesSearch } from "@/pages/pipelines/address";
import { newPromotionSearch } from "@/pages/promotions/address";
import { auditSearch } from "@/pages/security/address";
import { newVersionSearch, promptSearch, promptsSearch } from "@/pages/prompts/address";
import { aliasesSearch } from "@/pages/registry/address";
import { storeSearch } from "@/pages/retrieval/address";
import { usageSearch } from "@/pages/usage/address";

/** The states that the list of an endpoint's deliveries can be limited to. */
const DELIVERY_STATES = ["pending", "delivered", "failed"] as const;

const root = createRootRoute({ component: Layout, notFoundComponent: NotFound });

/**
 * Load the code of a page.
 *
 * After an upgrade of the server the code of the older console is gone. The router knows the error by its first words,
 * and when such a page is opened, it loads the document anew, once.
 *
 * Raises: ApiError where the server cannot be reached, so that the document stays.
 */
async function loadCode<Code>(load: () => Promise<Code>): Promise<Code> {
  try {
    return await load();
  } catch (error) {
    await reachServer();
    throw new Error(`Failed to fetch dynamically imported module: ${messageOf(error)}`, { cause: error });
  }
}

/**
 * Make the route of a page, which is loaded when it is opened.
 *
 * `search` reads the page's parameters from the address. It receives what stands there, which may be anything.
 */
function page<const Path extends string, Search extends object = object>(
  path: Path,
  load: () => Promise<{ default: ComponentType }>,
  search?: (given: Record<string, unknown>) => Search,
) {
  return createRoute({
    getParentRoute: () => root,
    path,
    component: lazyRouteComponent(() => loadCode(load)),
    validateSearch: search ?? (() => ({})),
  });
}

// One line a page. A page reads its parameters by `getRouteApi("/jobs/$id").useParams()` and `.useSearch()`.
const routes = root.addChildren([
  page("/", () => import("@/pages/overview/Overview"), overviewSearch),
  page("/webhooks", () => import("@/pages/webhooks/Webhooks")),
  page("/webhooks/$id", () => import("@/pages/webhooks/Webhook"), ({ state }) => ({ state: DELIVERY_STATES.find((each) => each === state) })),
  page("/schedules", () => import("@/pages/schedules/Schedules")),
  page("/workers", () => import("@/pages/fleet/Workers")),
  page("/keys", () => import("@/pages/security/Keys")),
  page("/audit", () => import("@/pages/security/Audit"), auditSearch),
  page("/jobs", () => import("@/pages/jobs/Jobs"), jobsSearch),
  page("/jobs/$jobId", () => import("@/pages/jobs/Job"), jobSearch),
  page("/pipelines", () => import("@/pages/pipelines/Pipelines"), pipelinesSearch),
  page("/pipelines/new", () => import("@/pages/pipelines/NewPipeline")),
  page("/pipelines/$pipelineId", () => import("@/pages/pipelines/PipelinePage")),
  page("/batches/new", () => import("@/pages/batches/NewBatch"), newBatchSearch),
  page("/models", () => import("@/pages/fleet/models/Models"), modelsSearch),
  page("/aliases", () => import("@/pages/registry/Aliases"), aliasesSearch),
  page("/promotions", () => import("@/pages/promotions/Promotions")),
  page("/promotions/new", () => import("@/pages/promotions/NewPromotion"), newPromotionSearch),
  page("/promotions/$promotionId", () => import("@/pages/promotions/PromotionPage")),
  page("/files", () => import("@/pages/files/Files"), filesSearch),
  page("/files/$fileId", () => import("@/pages/files/FilePage")),
  page("/datasets", () => import("@/pages/datasets/Datasets")),
  page("/datasets/$datasetId", () => import("@/pages/datasets/DatasetPage"), datasetSearch),
  page("/datasets/$datasetId/versions/new", () => import("@/pages/datasets/NewVersion")),
  page("/vector-stores", () => import("@/pages/retrieval/Stores")),
  page("/vector-stores/$storeId", () => import("@/pages/retrieval/StorePage"), storeSearch),
  page("/playground", () => import("@/pages/inference/Playground"), playgroundSearch),
  page("/logs", () => import("@/pages/inference/Logs"), logsSearch),
  page("/prompts", () => import("@/pages/prompts/Prompts"), promptsSearch),
  page("/prompts/new", () => import("@/pages/prompts/NewPrompt")),
  page("/prompts/$promptId", () => import("@/pages/prompts/PromptPage"), promptSearch),
  page("/prompts/$promptId/versions/new", () => import("@/pages/prompts/NewVersion"), newVersionSearch),
  page("/fine-tuning", () => import("@/pages/finetuning/TuningJobs")),
  page("/fine-tuning/new", () => import("@/pages/finetuning/NewTuning"), newTuningSearch),
  page("/fine-tuning/$jobId", () => import("@/pages/finetuning/TuningJob"), tuningSearch),
  page("/evals", () => import("@/pages/evals/Evals")),
  page("/evals/new", () => import("@/pages/evals/NewEval"), newEvalSearch),
  page("/evals/$evalId", () => import("@/pages/evals/EvalPage")),
  page("/evals/$evalId/runs/$runId", () => import("@/pages/evals/RunPage"), runSearch),
  page("/drift", () => import("@/pages/monitoring/Drift")),
  page("/drift/$monitorId", () => import("@/pages/monitoring/MonitorPage"), monitorSearch),
  page("/usage", () => import("@/pages/usage/Usage"), usageSearch),
  page("/budgets", () => import("@/pages/usage/Budgets")),
  page("/organization", () => import("@/pages/organization/Organization"), organizationSearch),
  page("/organization/$projectId", () => import("@/pages/organization/ProjectPage"), projectSearch),
]);

export const router = createRouter({
  routeTree: routes,
  basepath: "/console",
  defaultPreload: "intent",
  defaultErrorComponent: Broken,
  defaultPendingComponent: Loading,
});

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}

function NotFound() {
  return (
    <Page title="Not found">
      <Empty title="There is no such page" action={<Link to="/">Go to the overview</Link>}>
        The address may be mistyped, or be of a newer version of the console.
      </Empty>
    </Page>
  );
}

function Broken({ error }: ErrorComponentProps) {
  return (
    <Page title="Error">
      <Failure title="This page cannot be shown" error={error} onRetry={() => void router.invalidate()} />
    </Page>
  );
}
