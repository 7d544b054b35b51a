import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { Button } from "@/components/Button";
import { Failure } from "@/components/Failure";
import { Field, Input } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { Loading } from "@/components/Loading";

type EventType = Schema<"CreateEndpoint">["event_types"][number];

/** The fields of an endpoint that its owner chooses. */
export interface EndpointFields {
  name: string;
  url: string;
  event_types: EventType[];
}

interface EndpointFormProps {
  title: string;
  /** The words of the button that sends the form. */
  action: string;
  initial: EndpointFields;
  onClose: () => void;
  onSubmit: (fields: EndpointFields) => Promise<unknown>;
}

/** Ask for the fields of an endpoint, new or changed. It closes when they were accepted. */
export function EndpointForm({ title, action, initial, onClose, onSubmit }: EndpointFormProps) {
  const [fields, setFields] = useState(initial);
  const rest = { title, action, onClose, disabled: fields.event_types.length === 0 };
  return (
    <FormDialog {...rest} failure="The endpoint was not saved" onSubmit={() => onSubmit(fields)}>
      <Field label="URL" hint="Events are sent here, by POST." param="url">
        <Input type="url" required placeholder="https://example.com/hook" value={fields.url} onChange={(event) => setFields({ ...fields, url: event.target.value })} />
      </Field>
      <Field label="Name" hint="For people." param="name">
        <Input required maxLength={255} value={fields.name} onChange={(event) => setFields({ ...fields, name: event.target.value })} />
      </Field>
      <EventTypes chosen={fields.event_types} onChange={(event_types) => setFields({ ...fields, event_types })} />
    </FormDialog>
  );
}

/** Use the event types that an endpoint may ask for. */
export function useEventTypes() {
  return useQuery({
    ...get("/v1/webhook_event_types", {}),
    staleTime: Infinity,
  });
}

function EventTypes({ chosen, onChange }: { chosen: readonly EventType[]; onChange: (types: EventType[]) => void }) {
  const types = useEventTypes();
  const all = (types.data?.data ?? []) as EventType[];
  // Types of OpenAI that this server never sends stay chosen in an endpoint that asks for them.
  const others = chosen.filter((type) => !all.includes(type));
  return (
    <fieldset className="choices">
      <legend>Event types</legend>
      {types.isPending && <Loading what="the event types" />}
      {types.isError && <Failure error={types.error} onRetry={() => void types.refetch()} />}
      <div className="actions">
        <Button tone="plain" className="copy" onClick={() => onChange([...all, ...others])}>
          All
        </Button>
        <Button tone="plain" className="copy" onClick={() => onChange([])}>
          None
        </Button>
      </div>
      {[...all, ...others].map((type) => (
        <label key={type}>
          <input
            type="checkbox"
            checked={chosen.includes(type)}
            onChange={(event) => onChange(event.target.checked ? [...chosen, type] : chosen.filter((each) => each !== type))}
          />
          <code>{type}</code>
        </label>
      ))}
    </fieldset>
  );
}
