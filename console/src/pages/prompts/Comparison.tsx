import { useMemo } from "react";

import { Field, Select } from "@/components/Field";
import { Loaded } from "@/components/Loaded";
import { Section } from "@/components/Page";

import { differenceOf, type Line } from "./difference";
import type { Version } from "./prompts";
import { useVersion } from "./queries";

interface ComparisonProps {
  version: Version;
  /** The number of the version before; the one that precedes `version` unless it is given. */
  against: string | undefined;
  /** The versions of the prompt, the newest first. */
  options: readonly (readonly [version: string, label: string])[];
  onChoose: (against: string) => void;
}

/** Show what a version of a prompt changed of another one. */
export function Comparison({ version, against, options, onChoose }: ComparisonProps) {
  const others = options.filter(([number]) => number !== version.version);
  const before = against ?? (others.find(([number]) => Number(number) < Number(version.version)) ?? others[0])?.[0];
  const other = useVersion(version.prompt_id, before);
  if (before === undefined) return <p className="muted">The prompt has one version.</p>;
  return (
    <div className="stack">
      <Field label="Compare with">
        <Select value={before} options={others} onChange={onChoose} />
      </Field>
      <Loaded what="the other version" query={other}>
        {(other) => <Differences before={other} after={version} />}
      </Loaded>
    </div>
  );
}

function Differences({ before, after }: { before: Version; after: Version }) {
  const sections = useMemo(() => differenceOf(before, after), [before, after]);
  if (sections.length === 0) return <p>The versions have the same content.</p>;
  return sections.map(({ title, lines }) => (
    <Section key={title} title={title}>
      {/* eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex -- a long text is scrolled by keyboard */}
      <div className="difference" tabIndex={0} role="region" aria-label={`Difference of ${title}`}>
        {lines.map((line, index) => (line === null ? <hr key={index} /> : <Difference key={index} line={line} />))}
      </div>
    </Section>
  ));
}

const SIGNS = { same: " ", removed: "−", added: "+" } as const;
const WORDS = { same: "", removed: "removed: ", added: "added: " } as const;

function Difference({ line: { kind, parts } }: { line: Line }) {
  return (
    <p className={kind}>
      <span aria-hidden>{SIGNS[kind]}</span>
      <span className="hidden">{WORDS[kind]}</span>
      <span>{parts.map(({ text, isChanged }, index) => (isChanged ? <mark key={index}>{text}</mark> : text))}</span>
    </p>
  );
}
