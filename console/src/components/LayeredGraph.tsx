import { useLayoutEffect, useRef, useState, type ReactNode, type RefObject } from "react";

import { layers, type GraphNode } from "./layers";

interface LayeredGraphProps<Node> {
  nodes: readonly Node[];
  /** The node that the page is about. */
  currentId?: string;
  /** Render the content of a node. */
  children: (node: Node) => ReactNode;
}

/** Render a graph from left to right: each node stands behind those that it waits for, with an arrow from each of them. */
export function LayeredGraph<Node extends GraphNode>({ nodes, currentId, children }: LayeredGraphProps<Node>) {
  const box = useRef<HTMLDivElement>(null);
  const arrows = useArrows(box, nodes);
  return (
    <div className="graph" ref={box}>
      <svg aria-hidden>
        {arrows.map((arrow, index) => (
          <path key={index} d={arrow} />
        ))}
      </svg>
      {layers(nodes).map((layer, depth) => (
        <ul key={depth} className="plain" aria-label={`Step ${depth + 1}`}>
          {layer.map((node) => (
            <li key={node.id} data-node={node.id} className={node.id === currentId ? "card stack current" : "card stack"} aria-current={node.id === currentId || undefined}>
              {children(node)}
            </li>
          ))}
        </ul>
      ))}
    </div>
  );
}

/** Use the paths of the arrows between the nodes of a graph, drawn anew when a node has another size. */
function useArrows(box: RefObject<HTMLDivElement | null>, nodes: readonly GraphNode[]): string[] {
  const [arrows, setArrows] = useState<string[]>([]);
  useLayoutEffect(() => {
    const items = new Map([...box.current!.querySelectorAll<HTMLElement>("[data-node]")].map((item) => [item.dataset.node!, item]));
    const draw = () => {
      const pairs = nodes.flatMap(({ id, after }) => after.map((source) => [items.get(source), items.get(id)] as const));
      setArrows(pairs.flatMap(([from, to]) => (from && to ? [arrowBetween(from, to)] : [])));
    };
    const observer = new ResizeObserver(draw);
    items.forEach((item) => observer.observe(item));
    return () => observer.disconnect();
  }, [box, nodes]);
  return arrows;
}

/** Pixels of the head of an arrow. */
const HEAD = 5;

/** Return the path of an arrow from the right side of one node to the left side of another one. */
function arrowBetween(from: HTMLElement, to: HTMLElement): string {
  const [x, y] = [from.offsetLeft + from.offsetWidth, from.offsetTop + from.offsetHeight / 2];
  const [end, level] = [to.offsetLeft, to.offsetTop + to.offsetHeight / 2];
  const middle = (x + end) / 2;
  return `M${x},${y} C${middle},${y} ${middle},${level} ${end},${level} M${end - HEAD},${level - HEAD} L${end},${level} L${end - HEAD},${level + HEAD}`;
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
