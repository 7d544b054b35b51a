import type { Schema } from "@/api/client";
import { ConfirmButton } from "@/components/Confirm";
import { formatCount } from "@/components/format";
import { Card, Facts } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { Time } from "@/components/Time";

import { resume } from "./steering";

/** List why engines are quarantined, with the ends of their logs, and let them be tried again at once. */
export function Quarantined({ quarantines }: { quarantines: readonly Schema<"QuarantineObject">[] }) {
  return (
    <div className="stack">
      {quarantines.map(({ model, host_devices, error, deaths, created_at, until, suspects, lines }) => (
        <Card key={`${model} ${host_devices}`} className="stack">
          <div className="section-head">
            <h3 className="break">{model}</h3>
            <ConfirmButton
              label="Try it again"
              name={`Try it again: ${model}`}
              title={`Try ${model} again?`}
              action="Try the model again"
              tone="primary"
              onConfirm={() => resume({ kind: "model", name: model })}
            >
              <p>Workers load it at once. A pause of the model ends, too.</p>
            </ConfirmButton>
          </div>
          <p className="break">{error}</p>
          <Facts
            facts={[
              ["Devices", <code key="devices">{host_devices}</code>],
              ["Died", formatCount(deaths, "time")],
              ["Since", <Time key="since" at={created_at} />],
              ["Next trial", <Time key="until" at={until} />],
              ["In flight when it died", suspects.join(", ")],
            ]}
          />
          {lines.length > 0 && <Snippet label="The end of its log" text={lines.join("\n")} />}
          <Snippet label="Command" text={`nightmill resume model ${model}`} />
        </Card>
      ))}
    </div>
  );
}
