import { request } from "@/api/client";

const BYTES = 65_536;
const LINES = 50;
const LONGEST_LINE = 2_000;

/** The beginning of a file. */
interface Beginning {
  /** The first lines, long ones cut; null where the file is not text. */
  lines: string[] | null;
  /** The file has more than `lines` shows. */
  isCut: boolean;
}

/** Return the first lines of `content`, the beginning of a file of `total` bytes. */
export function firstLines(content: Uint8Array, total: number): Beginning {
  const text = new TextDecoder().decode(content);
  if (text.includes("\0") || share(text, "\uFFFD") > 0.05) return { lines: null, isCut: total > 0 };
  const all = text.split("\n");
  const isEnd = content.length >= total;
  if (!isEnd && all.length > 1) all.pop();
  if (all.at(-1) === "") all.pop();
  const lines = all.slice(0, LINES);
  const isCut = !isEnd || all.length > LINES || lines.some((line) => line.length > LONGEST_LINE);
  return { lines: lines.map((line) => (line.length > LONGEST_LINE ? `${line.slice(0, LONGEST_LINE)} …` : line)), isCut };
}

function share(text: string, character: string): number {
  return text.length === 0 ? 0 : (text.split(character).length - 1) / text.length;
}

/** Read the beginning of a file. */
export async function readBeginning(fileId: string, total: number, signal: AbortSignal): Promise<Beginning> {
  if (total === 0) return { lines: [], isCut: false };
  const answer = await request(`/v1/files/${encodeURIComponent(fileId)}/content`, { headers: { Range: `bytes=0-${BYTES - 1}` }, signal });
  return firstLines(new Uint8Array(await answer.arrayBuffer()), total);
}
