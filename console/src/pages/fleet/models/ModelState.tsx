import { State } from "@/components/State";
import { Time } from "@/components/Time";

import type { Model } from "./served";

/** Render whether a model is served, and if not, why. */
export function ModelState({ model }: { model: Model }) {
  const { serving } = model;
  if (!serving) return <span className="muted">not known</span>;
  return (
    <div>
      <State state={serving.state} />
      {serving.reason && <div className="muted small break">{serving.reason}</div>}
      {serving.loading_since && (
        <div className="muted small">
          since <Time at={serving.loading_since} />
        </div>
      )}
    </div>
  );
}
