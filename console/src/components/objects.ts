import { linkOptions, type LinkProps } from "@tanstack/react-router";

import { KINDS } from "@/api/kinds";

/** The page of the objects of a kind. `ids` matches the beginning of their ids, which is theirs alone. */
interface ObjectPage {
  ids: RegExp;
  /** The kind in a sentence. */
  name: string;
  link: (id: string) => LinkProps;
}

const JOB_IDS = new RegExp(`^(${KINDS.map(({ prefix }) => prefix).join("|")})\\w`);

/** The pages of objects by kind: the only place that knows which id has which page. The first that matches has it. */
const PAGES = {
  tuning: { ids: /^ftjob-\w/, name: "the fine-tuning job", link: (jobId) => linkOptions({ to: "/fine-tuning/$jobId", params: { jobId } }) },
  pipeline: { ids: /^pipe_\w/, name: "the pipeline", link: (pipelineId) => linkOptions({ to: "/pipelines/$pipelineId", params: { pipelineId } }) },
  promotion: { ids: /^promo_\w/, name: "the promotion", link: (promotionId) => linkOptions({ to: "/promotions/$promotionId", params: { promotionId } }) },
  job: { ids: JOB_IDS, name: "the job", link: (jobId) => linkOptions({ to: "/jobs/$jobId", params: { jobId } }) },
  file: { ids: /^file-\w/, name: "the file", link: (fileId) => linkOptions({ to: "/files/$fileId", params: { fileId } }) },
  dataset: { ids: /^ds_\w/, name: "the dataset", link: (datasetId) => linkOptions({ to: "/datasets/$datasetId", params: { datasetId } }) },
  store: { ids: /^vs_\w/, name: "the vector store", link: (storeId) => linkOptions({ to: "/vector-stores/$storeId", params: { storeId } }) },
  model: { ids: /^ft:./, name: "the model", link: (model) => linkOptions({ to: "/models", search: { model } }) },
  eval: { ids: /^eval_\w/, name: "the evaluation", link: (evalId) => linkOptions({ to: "/evals/$evalId", params: { evalId } }) },
  prompt: { ids: /^pmpt_\w/, name: "the prompt", link: (promptId) => linkOptions({ to: "/prompts/$promptId", params: { promptId } }) },
  webhook: { ids: /^we_\w/, name: "the webhook", link: (id) => linkOptions({ to: "/webhooks/$id", params: { id }, search: { state: undefined } }) },
  monitor: { ids: /^driftmon_\w/, name: "the drift monitor", link: (monitorId) => linkOptions({ to: "/drift/$monitorId", params: { monitorId } }) },
  schedule: { ids: /^sched_\w/, name: "the schedules", link: () => linkOptions({ to: "/schedules" }) },
} as const satisfies Readonly<Record<string, ObjectPage>>;

/** A kind of objects that have a page. */
export type ObjectKind = keyof typeof PAGES;

/** Return the page of an object, of a given kind or of that which its id tells; null where there is none. */
export function pageOf(id: string, kind?: ObjectKind): { name: string; link: LinkProps } | null {
  const page: ObjectPage | undefined = kind ? PAGES[kind] : Object.values<ObjectPage>(PAGES).find(({ ids }) => ids.test(id));
  return page ? { name: page.name, link: page.link(id) } : null;
}
