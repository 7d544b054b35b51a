import { useRouter } from "@tanstack/react-router";

/** An entry of the navigation. */
export type Entry = readonly [path: string, name: string];

/** The navigation. An entry appears when the router has its page. */
const GROUPS: readonly (readonly [title: string, entries: readonly Entry[]])[] = [
  ["", [["/", "Overview"]]],
  [
    "Work",
    [
      ["/jobs", "Jobs"],
      ["/batches/new", "New batch"],
      ["/pipelines", "Pipelines"],
      ["/files", "Files"],
      ["/datasets", "Datasets"],
      ["/vector-stores", "Vector stores"],
      ["/prompts", "Prompts"],
      ["/playground", "Playground"],
      ["/logs", "Logs"],
    ],
  ],
  [
    "Models",
    [
      ["/models", "Models"],
      ["/aliases", "Aliases"],
      ["/promotions", "Promotions"],
      ["/fine-tuning", "Fine-tuning"],
      ["/evals", "Evaluations"],
      ["/drift", "Drift"],
    ],
  ],
  [
    "Operation",
    [
      ["/webhooks", "Webhooks"],
      ["/schedules", "Schedules"],
      ["/workers", "Workers"],
      ["/keys", "Keys"],
      ["/audit", "Audit"],
    ],
  ],
  [
    "Organization",
    [
      ["/usage", "Usage"],
      ["/budgets", "Budgets"],
      ["/organization", "Projects and people"],
    ],
  ],
];

/** Use the groups of the navigation with the entries whose pages exist. */
export function useNavigation(): readonly (readonly [title: string, entries: readonly Entry[]])[] {
  const pages: Readonly<Record<string, unknown>> = useRouter().routesByPath;
  return GROUPS.map(([title, entries]) => [title, entries.filter(([path]) => path in pages)] as const).filter(
    ([, entries]) => entries.length > 0,
  );
}
