/** A node of a graph: it stands behind those in `after`. */
export interface GraphNode {
  readonly id: string;
  readonly after: readonly string[];
}

/** Return the nodes of a graph in layers: each stands behind all that it waits for. Others than the nodes are left out. */
export function layers<Node extends GraphNode>(nodes: readonly Node[]): Node[][] {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const depths = new Map<string, number>();
  // The server refuses cycles, and adds a job only behind those that are there: an order by time visits each once.
  const waiting = [...nodes];
  while (waiting.length > 0) {
    const node = waiting.pop()!;
    const open = node.after.filter((id) => byId.has(id) && !depths.has(id));
    if (open.length === 0) depths.set(node.id, 1 + Math.max(-1, ...node.after.map((id) => depths.get(id) ?? -1)));
    else waiting.push(node, ...open.map((id) => byId.get(id)!));
  }
  const result: Node[][] = [];
  for (const node of nodes) (result[depths.get(node.id)!] ??= []).push(node);
  return result;
}
