import type { Schema } from "@/api/client";
import { State } from "@/components/State";

/** Render whether an endpoint gets events; the reason shows on hover where it does not. */
export function EndpointState({ endpoint }: { endpoint: Schema<"EndpointObject"> }) {
  const isDisabled = endpoint.disabled_at !== null;
  return <State state={isDisabled ? "disabled" : "enabled"} title={endpoint.disabled_reason ?? undefined} />;
}
