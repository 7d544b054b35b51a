import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import { getAsAdmin } from "@/api/get";
import { useSession } from "@/api/session";
import { Loaded } from "@/components/Loaded";
import { Card, Section } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { Quarantined } from "@/pages/fleet/Quarantined";

const REFRESH = 10_000;

/** Show why engines are quarantined: to a reader with the admin key with the last lines of their logs. */
export function Quarantines() {
  const { adminKey } = useSession();
  return (
    <Section title="Quarantined engines">
      {adminKey === null ? (
        <Card>
          <p>
            An engine died too often and is not loaded for a while. The last lines of its log are for the operator: enter an
            admin key on the page <Link to="/workers">Workers</Link>, or ask on the server&apos;s host.
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
  const quarantines = useQuery({ ...getAsAdmin("/v1/quarantines", {}), refetchInterval: REFRESH });
  return (
    <Loaded what="the quarantines" query={quarantines}>
      {({ data }) => (data.length > 0 ? <Quarantined quarantines={data} /> : <p className="muted">None on any worker.</p>)}
    </Loaded>
  );
}
