import type { Schema } from "@/api/client";
import { Field, Input, Select } from "@/components/Field";

type Strategy = NonNullable<Schema<"CreateVectorStore">["chunking_strategy"]>;

/** How documents are cut, as a form has it. */
interface ChunkingForm {
  type: Strategy["type"];
  size: string;
  overlap: string;
}

export const AUTO: ChunkingForm = { type: "auto", size: "800", overlap: "400" };

const TYPES = [
  ["auto", "Automatic: 800 tokens, 400 of overlap"],
  ["static", "Fixed size"],
  ["sentence", "At the ends of sentences"],
  ["structure", "Sections, code and tables whole"],
  ["semantic", "Where the subject changes"],
] as const;

/** Return the chunking strategy of a form. */
export function strategyOf({ type, size, overlap }: ChunkingForm): Strategy {
  const sizes = { max_chunk_size_tokens: Number(size), chunk_overlap_tokens: Number(overlap) };
  switch (type) {
    case "auto":
      return { type };
    case "static":
      return { type, static: sizes };
    case "sentence":
      return { type, sentence: sizes };
    case "structure":
      return { type, structure: sizes };
    case "semantic":
      return { type, semantic: { max_chunk_size_tokens: sizes.max_chunk_size_tokens } };
  }
}

/** Return the words of a chunking strategy as the API shows it: `sentence, 200 tokens, 50 of overlap`. */
export function chunkingWords(strategy: Record<string, unknown>): string {
  const type = String(strategy.type);
  const sizes = (strategy[type] ?? {}) as { max_chunk_size_tokens?: number; chunk_overlap_tokens?: number };
  const parts = [type];
  if (sizes.max_chunk_size_tokens !== undefined) parts.push(`${sizes.max_chunk_size_tokens} tokens`);
  if (sizes.chunk_overlap_tokens) parts.push(`${sizes.chunk_overlap_tokens} of overlap`);
  return parts.join(", ");
}

/** Render the fields that say how documents are cut. */
export function ChunkingFields({ form, onChange }: { form: ChunkingForm; onChange: (form: ChunkingForm) => void }) {
  return (
    <>
      <Field label="Chunks">
        <Select value={form.type} options={TYPES} onChange={(type) => onChange({ ...form, type: type as ChunkingForm["type"] })} />
      </Field>
      {form.type !== "auto" && (
        <Field label="Tokens of a chunk" hint="100 to 4,096 tokens of the embedding model.">
          <Input type="number" min={100} max={4096} required value={form.size} onChange={(event) => onChange({ ...form, size: event.target.value })} />
        </Field>
      )}
      {form.type !== "auto" && form.type !== "semantic" && (
        <Field label="Tokens of overlap" hint="At most half of a chunk.">
          <Input type="number" min={0} required value={form.overlap} onChange={(event) => onChange({ ...form, overlap: event.target.value })} />
        </Field>
      )}
    </>
  );
}
