import { useState } from "react";

import { Button } from "@/components/Button";
import { Field, Select } from "@/components/Field";
import { formatCount, words } from "@/components/format";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Section } from "@/components/Page";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import type { Report, ReportRow } from "./report";

/** Rows that are shown at a time: a report may have many thousands. */
const PAGE = 200;

const COLUMNS: readonly Column<ReportRow>[] = [
  { id: "kind", header: "Kind", cell: ({ kind }) => words(kind), sort: ({ kind }) => kind },
  { id: "outcome", header: "Outcome", cell: ({ outcome }) => <State state={outcome} />, sort: ({ outcome }) => outcome },
  { id: "origin", header: "There", cell: ({ origin_id }) => <code className="break">{origin_id}</code>, sort: ({ origin_id }) => origin_id },
  { id: "id", header: "Here", cell: ({ id }) => (id === null ? "–" : <ObjectLink id={id} />), sort: ({ id }) => id },
  { id: "reason", header: "Reason", cell: ({ reason }) => <span className="break">{reason || "–"}</span>, wide: true },
];

/** Show what a migration brought, what differs and what is lost. */
export function MigrationReport({ report }: { report: Report }) {
  const [outcome, setOutcome] = useState("");
  const [shown, setShown] = useState(PAGE);
  const outcomes = [...new Set(report.rows.map((row) => row.outcome))];
  const rows = report.rows.filter((row) => outcome === "" || row.outcome === outcome);
  return (
    <Section title="Report of a migration">
      <div className="stack">
        <Card>
          <Facts
            facts={[
              ["From", report.source],
              ["Made", <Time key="made" at={report.created_at} />],
              ["Applied", report.applied ? "yes" : "no, this is a dry run"],
              ...Object.entries(report.counts).map(([name, count]) => [words(name), formatCount(count, "object")] as const),
            ]}
          />
        </Card>
        <div className="filters">
          <Field label="Outcome">
            <Select value={outcome} options={[["", "All"], ...outcomes.map((each): [string, string] => [each, words(each)])]} onChange={setOutcome} />
          </Field>
        </div>
        <Table label="Objects" columns={COLUMNS} rows={rows.slice(0, shown)} rowKey={(row) => `${row.kind} ${row.origin_id}`} />
        {rows.length > shown && (
          <div className="load-more">
            <Button onClick={() => setShown(shown + PAGE)}>{`Show more of ${formatCount(rows.length, "object")}`}</Button>
          </div>
        )}
      </div>
    </Section>
  );
}
