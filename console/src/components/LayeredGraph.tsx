import type { ReactNode } from "react";

import { layers, type GraphNode } from "./layers";

interface LayeredGraphProps<Node> {
  nodes: readonly Node[];
  /** The node that the page is about. */
  currentId?: string;
  /** Render the content of a node. */
  children: (node: Node) => ReactNode;
}

/** Render a graph from left to right: each node stands behind those that it waits for. */
export function LayeredGraph<Node extends GraphNode>({ nodes, currentId, children }: LayeredGraphProps<Node>) {
  return (
    <div className="graph">
      {layers(nodes).map((layer, depth) => (
        <ul key={depth} className="plain" aria-label={`Step ${depth + 1}`}>
          {layer.map((node) => (
            <li key={node.id} className={node.id === currentId ? "card stack current" : "card stack"} aria-current={node.id === currentId || undefined}>
              {children(node)}
            </li>
          ))}
        </ul>
      ))}
    </div>
  );
}

/** Say what a node waits for, where that is anything; `noun` names more than one of them. */
export function After({ after, noun }: { after: readonly string[]; noun: string }) {
  if (after.length === 0) return null;
  return (
    <span className="muted small break">
      after {after.length === 1 ? "" : `${after.length} ${noun}: `}
      {after.slice(0, 5).join(", ")}
      {after.length > 5 && " …"}
    </span>
  );
}
