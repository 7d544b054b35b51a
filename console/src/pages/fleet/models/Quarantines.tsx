import { useQuery } from "@tanstack/react-query";

import type { Schema } from "@/api/client";
import { getAsOperator } from "@/api/get";
import { useSession } from "@/api/session";
import { formatCount } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Card, Facts, Section } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { Time } from "@/components/Time";

type Quarantine = Schema<"QuarantineObject">;

const POLL = 10_000;

/** Show why engines are quarantined: to a reader with the operator's key with the last lines of their logs. */
export function Quarantines() {
  const { operatorKey } = useSession();
  return (
    <Section title="Quarantined engines">
      {operatorKey === null ? (
        <Card>
          <p>
            An engine died too often and is not loaded for a while. The last lines of its log are for the operator: enter an
            operator&apos;s key on the page Workers, or ask on the server&apos;s host.
          </p>
          <Snippet label="Command" text="nightmill workers" />
        </Card>
      ) : (
        <Causes />
      )}
    </Section>
  );
}

function Causes() {
  const quarantines = useQuery({
    ...getAsOperator("/v1/quarantines", {}),
    refetchInterval: POLL,
  });
  return (
    <Loaded what="the quarantines" query={quarantines}>
      {({ data }) => (
        <div className="stack">
          {data.length === 0 && <p className="muted">None on any worker.</p>}
          {data.map((quarantine) => (
            <Quarantined key={`${quarantine.model} ${quarantine.host_devices}`} quarantine={quarantine} />
          ))}
        </div>
      )}
    </Loaded>
  );
}

function Quarantined({ quarantine }: { quarantine: Quarantine }) {
  return (
    <Card className="stack">
      <h3 className="break">{quarantine.model}</h3>
      <p className="break">{quarantine.error}</p>
      <Facts
        facts={[
          ["Devices", <code key="devices">{quarantine.host_devices}</code>],
          ["Died", formatCount(quarantine.deaths, "time")],
          ["Since", <Time key="since" at={quarantine.created_at} />],
          ["Next trial", <Time key="until" at={quarantine.until} />],
          ["In flight when it died", quarantine.suspects.join(", ")],
        ]}
      />
      {quarantine.lines.length > 0 && <Snippet label="The end of its log" text={quarantine.lines.join("\n")} />}
      <Snippet label="Free it at once" text={`nightmill resume model ${quarantine.model}`} />
    </Card>
  );
}
