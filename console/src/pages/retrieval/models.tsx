import { Field, Input, Select } from "@/components/Field";
import { embeds, useModels } from "@/pages/fleet/models/served";

interface EmbeddingFieldsProps {
  model: string;
  onModel: (model: string) => void;
  dimensions: string;
  onDimensions: (dimensions: string) => void;
  /** What no choice means: "the default". */
  none: string;
}

/** Render the fields that choose an embedding model and the length of its vectors. */
export function EmbeddingFields({ model, onModel, dimensions, onDimensions, none }: EmbeddingFieldsProps) {
  const models = useModels();
  const embedding = (models.data?.data ?? []).filter(embeds);
  return (
    <>
      <Field label="Embedding model" error={models.isError ? models.error.message : null}>
        <Select value={model} options={[["", none], ...embedding.map(({ id }): [string, string] => [id, id])]} onChange={onModel} />
      </Field>
      <Field label="Dimensions" hint="Cut vectors to this length. Empty: all that the model has.">
        <Input type="number" min={1} max={16384} value={dimensions} onChange={(event) => onDimensions(event.target.value)} />
      </Field>
    </>
  );
}
