/** A node of a graph: it stands behind those in `after`. */
export interface GraphNode {
  readonly id: string;
  readonly after: readonly string[];
}

/**
 * Return the nodes of a graph in layers: each stands behind all that it waits for. Others than the nodes are left out.
 *
 * A node that stands behind itself, over whatever others, is drawn all the same.
 */
export function layers<Node extends GraphNode>(nodes: readonly Node[]): Node[][] {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const depths = new Map<string, number>();
  const opened = new Set<string>();
  const waiting = [...nodes];
  while (waiting.length > 0) {
    const node = waiting.pop()!;
    if (depths.has(node.id)) continue;
    const open = opened.has(node.id) ? [] : node.after.filter((id) => byId.has(id) && !depths.has(id));
    opened.add(node.id);
    if (open.length === 0) depths.set(node.id, 1 + Math.max(-1, ...node.after.map((id) => depths.get(id) ?? -1)));
    else waiting.push(node, ...open.map((id) => byId.get(id)!));
  }
  const result: Node[][] = [];
  for (const node of nodes) (result[depths.get(node.id)!] ??= []).push(node);
  return result;
}
