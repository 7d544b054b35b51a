import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { words } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Facts } from "@/components/Page";

import { Lineage } from "./Lineage";
import { Version } from "./Version";

type Manifest = Schema<"ModelManifest">;
type Evaluation = Schema<"ModelEvaluation">;

/** Show where a tuned model comes from: base, job, data, options, and the evaluations of it. */
export function Origin({ model }: { model: string }) {
  const query = useQuery(get("/v1/models/{model}", { path: { model } }));
  return (
    <Loaded what="the origin of the model" query={query}>
      {({ manifest }) =>
        manifest ? (
          <>
            <Facts facts={factsOf(manifest)} />
            {!manifest.is_checkpoint && (
              <>
                <Lineage model={model} />
                <Version model={model} />
              </>
            )}
          </>
        ) : (
          <p className="muted">Another project has trained it.</p>
        )
      }
    </Loaded>
  );
}

function factsOf(manifest: Manifest): (readonly [string, ReactNode])[] {
  const options = Object.entries({ ...manifest.hyperparameters, ...manifest.training }).filter(([, value]) => value !== null);
  return [
    ["Probe", manifest.probe_failure ?? (manifest.probe_accepted && "accepted by an operator")],
    ["Parent", manifest.parent && <ObjectLink key="parent" id={manifest.parent} kind="model" />],
    ["Fine-tuning job", manifest.fine_tuning_job && <ObjectLink key="job" id={manifest.fine_tuning_job} />],
    ["Import", manifest.model_import],
    ["Step", manifest.step],
    ["Method", manifest.method],
    ["Seed", manifest.seed],
    ...manifest.data.map(({ role, file_id, sha256 }) => [`${words(role)} data`, <Data key={role} fileId={file_id} sha256={sha256} />] as const),
    ["Data erased", manifest.data_erased && "yes"],
    ["Options", options.map(([name, value]) => `${words(name)} ${String(value)}`).join(", ")],
    ["Dtype", typeof manifest.run.dtype === "string" && manifest.run.dtype],
    ["SHA-256", <code key="sha256" className="break">{manifest.sha256}</code>],
    ["Evaluations", manifest.evaluations.length > 0 && <Evaluations key="evaluations" runs={manifest.evaluations} />],
  ];
}

function Data({ fileId, sha256 }: { fileId: string; sha256: string | null | undefined }) {
  return (
    <>
      <ObjectLink id={fileId} /> {sha256 && <code className="break">{sha256}</code>}
    </>
  );
}

function Evaluations({ runs }: { runs: readonly Evaluation[] }) {
  return (
    <ul>
      {runs.map((run) => (
        <li key={run.id}>
          <Link to="/evals/$evalId/runs/$runId" params={{ evalId: run.eval_id, runId: run.id }}>
            {run.name || run.id}
          </Link>
        </li>
      ))}
    </ul>
  );
}
