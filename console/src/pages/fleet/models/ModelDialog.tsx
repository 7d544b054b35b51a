import { useQuery } from "@tanstack/react-query";
import { useState, type ReactNode } from "react";

import { api } from "@/api/client";
import { getAsAdmin, refresh } from "@/api/get";
import { useSession } from "@/api/session";
import { Button } from "@/components/Button";
import { Confirm } from "@/components/Confirm";
import { Dialog } from "@/components/Dialog";
import { formatCount } from "@/components/format";
import { ObjectLink } from "@/components/ObjectLink";
import { Facts } from "@/components/Page";
import { Id } from "@/components/Snippet";

import { EvaluationLink, PlaygroundLink, PromotionLink, TuningLink } from "./ModelLinks";
import { ModelState } from "./ModelState";
import { Origin } from "./Origin";
import { generates, isTuned, type NamedModel } from "./served";

interface ModelDialogProps {
  named: NamedModel;
  onClose: () => void;
}

/** Show all that is known of a model, and let a tuned one be deleted. */
export function ModelDialog({ named: { model, aliases }, onClose }: ModelDialogProps) {
  const [isAsking, setAsking] = useState(false);
  const workers = useWorkersOf(model.serving?.model);
  const facts: (readonly [string, ReactNode])[] = [
    ["State", <ModelState key="state" model={model} />],
    ["Base", isTuned(model.id) && model.serving && <ObjectLink key="base" id={model.serving.model} kind="model" />],
    ["Aliases", aliases.join(", ")],
    ["Queue", model.serving?.queue],
    ["Workers", model.serving && formatCount(model.serving.workers, "worker")],
    ["Where", workers.join(", ")],
    ["Owner", model.owned_by],
    ["Context", model.max_model_len && formatCount(model.max_model_len, "token")],
    ["License", model.license],
    ["Trained on", model.training_data?.join(", ")],
    ["Prompt of queries", model.query_prompt],
    ["Prompt of passages", model.passage_prompt],
    ["Price of a million tokens", model.cost_per_million_tokens],
  ];
  if (isAsking) {
    return (
      <Confirm
        open
        title="Delete this model?"
        action="Delete the model"
        onClose={() => setAsking(false)}
        onConfirm={async () => {
          await api.DELETE("/v1/models/{model}", { params: { path: { model: model.id } } });
          await refresh("/v1/models");
          onClose();
        }}
      >
        <p className="break">
          <code>{model.id}</code> and its checkpoints are deleted for good. Jobs that name it fail.
        </p>
      </Confirm>
    );
  }
  return (
    <Dialog open title="Model" className="wide-dialog" onClose={onClose}>
      <div className="stack">
        <Id id={model.id} />
        <Facts facts={facts} />
        {isTuned(model.id) && <Origin model={model.id} />}
        <div className="actions end">
          {isTuned(model.id) && (
            <>
              <Button onClick={() => setAsking(true)}>Delete</Button>
              <PromotionLink model={model.id} />
            </>
          )}
          {generates(model) && (
            <>
              <TuningLink model={model.id} />
              <EvaluationLink model={model.id} />
              <PlaygroundLink model={model.id} />
            </>
          )}
        </div>
      </div>
    </Dialog>
  );
}

/** Use the live workers of a model, each with its host. Only an admin key may know them. */
function useWorkersOf(model: string | undefined): string[] {
  const { adminKey } = useSession();
  const workers = useQuery({
    ...getAsAdmin("/v1/workers", {}),
    enabled: adminKey !== null && model !== undefined,
  });
  const serving = workers.data?.data.filter(({ models }) => model !== undefined && models.includes(model)) ?? [];
  return serving.map(({ host, pid }) => `${host}, process ${pid}`);
}
