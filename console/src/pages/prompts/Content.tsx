import { Card, Facts, Section } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { JSON_FIELDS, messagesOf, variablesOf, writeJson, writeValue, type Variable, type Version } from "./prompts";

const VARIABLES: readonly Column<Variable>[] = [
  { id: "name", header: "Variable", cell: ({ name }) => <code>{name}</code>, sort: ({ name }) => name },
  { id: "type", header: "Type", cell: ({ type }) => type, sort: ({ type }) => type },
  { id: "required", header: "Required", cell: ({ required }) => (required ? "yes" : "no") },
  { id: "default", header: "Default", cell: (variable) => <span className="break">{writeValue(variable.type, variable.default) || "–"}</span> },
];

/** Show the content of a version. */
export function Content({ version }: { version: Version }) {
  const variables = variablesOf(version);
  return (
    <div className="stack">
      <Card>
        <Facts
          facts={[
            ["Model", version.model ?? "named by each request"],
            ["Created", <Time key="created" at={version.created_at} />],
            ["Created by", version.created_by],
            ["Hash", <code key="hash">{version.hash.slice(0, 12)}</code>],
          ]}
        />
      </Card>
      {version.instructions !== null && <Snippet label="Instructions" text={version.instructions} />}
      {messagesOf(version).map(({ role, content }, index) => (
        <Snippet key={index} label={`Message ${index + 1}, ${role}`} text={typeof content === "string" ? content : writeJson(content)} />
      ))}
      {JSON_FIELDS.map(({ name }) => [name, writeJson(version[name])] as const)
        .filter(([, text]) => text !== "")
        .map(([name, text]) => (
          <Snippet key={name} label={TITLES[name]} text={text} />
        ))}
      {variables.length > 0 && (
        <Section title="Variables">
          <Table label="Variables" columns={VARIABLES} rows={variables} rowKey={({ name }) => name} />
        </Section>
      )}
    </div>
  );
}

const TITLES = { ...Object.fromEntries(JSON_FIELDS.map(({ name, label }) => [name, label])), parameters: "Parameters" } as Readonly<Record<string, string>>;
