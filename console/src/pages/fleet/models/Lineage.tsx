import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { LayeredGraph } from "@/components/LayeredGraph";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Section } from "@/components/Page";
import { State } from "@/components/State";

type Node = Schema<"LineageNode">;
type Edge = Schema<"LineageEdge">;

const TYPES: Readonly<Record<Node["type"], string>> = {
  file: "Data",
  model: "Base",
  "fine_tuning.job": "Fine-tuning job",
  "model.import": "Import",
  "model.version": "Version",
  checkpoint: "Checkpoint",
  "eval.run": "Evaluation run",
  "model.alias": "Alias",
};

/** Draw what a version comes from and what was made of it: data, base, job, version, evaluations, aliases. */
export function Lineage({ model }: { model: string }) {
  const lineage = useQuery(get("/v1/model_versions/{model_version}/lineage", { path: { model_version: model } }));
  return (
    <Section title="Lineage">
      <Loaded what="the lineage" query={lineage}>
        {({ nodes, edges, truncated }) => (
          <>
            {truncated && <p className="banner">There is more than is shown.</p>}
            <LayeredGraph nodes={nodes.map((node) => ({ id: node.id, after: sourcesOf(node, edges), node }))} currentId={model}>
              {({ node }) => <Content node={node} uses={edges.filter(({ source }) => source === node.id)} />}
            </LayeredGraph>
          </>
        )}
      </Loaded>
    </Section>
  );
}

function sourcesOf({ id }: Node, edges: readonly Edge[]): string[] {
  return edges.filter(({ target }) => target === id).map(({ source }) => source);
}

function Content({ node, uses }: { node: Node; uses: readonly Edge[] }) {
  const { type, stage, status, sha256 } = node;
  const roles = type === "file" ? [...new Set(uses.map(({ relation }) => relation))] : [];
  return (
    <>
      <div className="row">
        <span>
          {TYPES[type]}
          {roles.length > 0 && `: ${roles.join(", ")}`}
        </span>
        {stage && stage !== "none" ? <State state={stage} /> : status && <State state={status} />}
      </div>
      <Name node={node} />
      {sha256 && <code className="muted small">SHA-256 {sha256.slice(0, 12)}</code>}
    </>
  );
}

function Name({ node: { id, type, name } }: { node: Node }) {
  switch (type) {
    case "file":
      return <ObjectLink id={name ?? id} />;
    case "model.alias":
      return (
        <Link to="/aliases" search={{ alias: id }} className="break">
          {id}
        </Link>
      );
    case "fine_tuning.job":
    case "model.import":
      return <ObjectLink id={id} />;
    case "eval.run":
      return (
        <>
          {name && <span className="break">{name}</span>}
          <ObjectLink id={id} />
        </>
      );
    default:
      return (
        <>
          {name && <strong className="break">{name}</strong>}
          <ObjectLink id={id} kind="model" />
        </>
      );
  }
}
