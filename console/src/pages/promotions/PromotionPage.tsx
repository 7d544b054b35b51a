import { useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";

import { api, queries, take } from "@/api/client";
import { get, POLL } from "@/api/get";
import { ConfirmButton } from "@/components/Confirm";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Page, Section } from "@/components/Page";
import { Duration } from "@/components/Quantity";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Time } from "@/components/Time";

import { GateReport } from "./GateReport";
import { candidateOf, describe, isLive, TARGETS, type Promotion } from "./promotions";

const route = getRouteApi("/promotions/$promotionId");

/** Show a promotion: what it moves, its gates with their runs and reports, and how it has ended. */
export default function PromotionPage() {
  const { promotionId } = route.useParams();
  const promotion = useQuery({
    ...get("/v1/promotions/{promotion_id}", { path: { promotion_id: promotionId } }),
    refetchInterval: ({ state }) => state.data && isLive(state.data) && POLL,
  });
  return (
    <Loaded what="the promotion" query={promotion} page="Promotion">
      {(promotion) => (
        <Page title={describe(promotion)} badge={<State state={promotion.status} />} description={<Id id={promotion.id} />} actions={<Actions promotion={promotion} />}>
          <Summary promotion={promotion} />
          {promotion.gates.map((gate, index) => (
            <Section key={index} title={`Gate ${index + 1}`}>
              <GateReport gate={gate} isLive={isLive(promotion)} />
            </Section>
          ))}
        </Page>
      )}
    </Loaded>
  );
}

function Summary({ promotion }: { promotion: Promotion }) {
  const { target, incumbent, error, created_at: created, ended_at: ended } = promotion;
  return (
    <Card className="stack">
      {error && (
        <p className="bad break">
          <code>{error.code}</code> {error.message}
        </p>
      )}
      <Facts
        facts={[
          ["Moves", TARGETS[target.type]],
          ["Target", <Target key="target" target={target} />],
          ["Incumbent", incumbent === "" ? "none in production" : <Value key="incumbent" target={target} value={incumbent} />],
          ["Candidate", <Value key="candidate" target={target} value={candidateOf(target)} />],
          ["Forced", promotion.force && "yes, without gates"],
          ["Reason", promotion.reason],
          ["Created", <Time key="created" at={created} />],
          ["Ended", ended !== null && <Time key="ended" at={ended} />],
          ["Took", ended !== null && <Duration key="took" seconds={ended - created} />],
          [
            "Job",
            <Link key="job" to="/jobs/$jobId" params={{ jobId: promotion.id }} search={{ tab: "graph" }}>
              Runs that it waits for
            </Link>,
          ],
          ...Object.entries(promotion.metadata ?? {}),
        ]}
      />
    </Card>
  );
}

function Target({ target }: { target: Promotion["target"] }) {
  if (target.type === "stage") return <ObjectLink id={target.id} kind="model" />;
  if (target.type !== "alias") return <ObjectLink id={target.id} />;
  return (
    <Link to="/aliases" search={{ alias: target.id }} className="break">
      {target.id}
    </Link>
  );
}

/** Render a model, the number of a version, or the id of an index. */
function Value({ target, value }: { target: Promotion["target"]; value: string }) {
  if (target.type === "alias" || target.type === "stage") return <ObjectLink id={value} kind="model" />;
  return <code className="break">{value}</code>;
}

function Actions({ promotion }: { promotion: Promotion }) {
  const path = { promotion_id: promotion.id };
  async function cancel() {
    const cancelled = await take(api.POST("/v1/promotions/{promotion_id}/cancel", { params: { path } }));
    queries.setQueryData(get("/v1/promotions/{promotion_id}", { path }).queryKey, cancelled);
  }
  if (promotion.status !== "in_progress") return null;
  return (
    <ConfirmButton label="Cancel" title="Cancel this promotion?" action="Cancel the promotion" onConfirm={cancel}>
      <p>Its runs are cancelled, and nothing moves.</p>
    </ConfirmButton>
  );
}
