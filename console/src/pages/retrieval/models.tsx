import { useQuery } from "@tanstack/react-query";

import { api, take } from "@/api/client";
import { Failure } from "@/components/Failure";
import { Field, Input, Select } from "@/components/Field";
import { Loading } from "@/components/Loading";

/** The queue of models that only embed. */
const EMBEDDING_QUEUE = "gpu.embed";

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
  const models = useQuery({
    queryKey: ["/v1/models", { include: "serving" }],
    queryFn: ({ signal }) => take(api.GET("/v1/models", { params: { query: { include: "serving" } }, signal })),
  });
  if (models.isPending) return <Loading what="the models" />;
  if (models.isError) return <Failure title="The models could not be listed" error={models.error} />;
  const embedding = models.data.data.filter(({ serving }) => serving?.queue === EMBEDDING_QUEUE);
  return (
    <>
      <Field label="Embedding model">
        <Select value={model} options={[["", none], ...embedding.map(({ id }): [string, string] => [id, id])]} onChange={onModel} />
      </Field>
      <Field label="Dimensions" hint="Cut vectors to this length. Empty: all that the model has.">
        <Input type="number" min={1} max={16384} value={dimensions} onChange={(event) => onDimensions(event.target.value)} />
      </Field>
    </>
  );
}
