import { diffLines, diffWordsWithSpace, type ChangeObject } from "diff";

import { messagesOf, variablesOf, writeJson, type Version } from "./prompts";

/** Insertions and deletions after which the search for a shortest difference ends: a browser stands still meanwhile. */
const MAX_EDITS = 2_000;
/** Lines around a change that are shown. */
const CONTEXT = 3;

/** A line of a difference. */
export interface Line {
  readonly kind: "same" | "removed" | "added";
  readonly parts: readonly { readonly text: string; readonly isChanged: boolean }[];
}

/** A part of two versions that differs: its lines, and `null` for lines left out between them. */
export interface Section {
  readonly title: string;
  readonly lines: readonly (Line | null)[];
}

/** Return the parts of two versions that differ. */
export function differenceOf(before: Version, after: Version): Section[] {
  const texts = textsOf(before);
  return textsOf(after)
    .map(([title, text], index) => ({ title, before: texts[index]![1], after: text }))
    .filter((section) => section.before !== section.after)
    .map((section) => ({ title: section.title, lines: shorten(linesOf(section.before, section.after)) }));
}

function textsOf(version: Version): (readonly [title: string, text: string])[] {
  const messages = messagesOf(version).map(({ role, content }) => `[${role}]\n${typeof content === "string" ? content : writeJson(content)}`);
  return [
    ["Model", version.model ?? ""],
    ["Instructions", version.instructions ?? ""],
    ["Messages", messages.join("\n")],
    ["Variables", variablesOf(version).map(({ name, type, ...others }) => JSON.stringify({ name, type, ...others })).join("\n")],
    ["Parameters", writeJson(version.parameters)],
    ["Tools", writeJson(version.tools)],
    ["Choice of tools", writeJson(version.tool_choice)],
    ["Format of the answer", writeJson(version.text)],
  ];
}

/** Return the lines of two texts. Where removed lines stand beside added ones, their words are compared, too. */
export function linesOf(before: string, after: string): Line[] {
  const changes = compare(diffLines, ended(before), ended(after));
  return changes.flatMap((change, index) => {
    if (!change.removed && !change.added) return split("same", [change]);
    const [removed, added] = change.removed ? [change, changes[index + 1]] : [changes[index - 1], change];
    const isReplaced = removed?.removed && added?.added;
    const words = isReplaced ? compare(diffWordsWithSpace, removed.value, added.value) : [{ ...change, added: false, removed: false }];
    return change.removed ? split("removed", words.filter(({ added }) => !added)) : split("added", words.filter(({ removed }) => !removed));
  });
}

function ended(text: string): string {
  return text === "" ? "" : `${text}\n`;
}

type Diff = (before: string, after: string, options: { maxEditLength: number }) => ChangeObject<string>[] | undefined;

/** Return the difference of two texts, or all of both where it is too long to be found. */
function compare(diff: Diff, before: string, after: string): ChangeObject<string>[] {
  const whole = (value: string, added: boolean) => ({ value, added, removed: !added, count: 1 });
  return diff(before, after, { maxEditLength: MAX_EDITS }) ?? [whole(before, false), whole(after, true)];
}

/** Return changes, which end with a line break, as lines of one kind. */
function split(kind: Line["kind"], changes: readonly ChangeObject<string>[]): Line[] {
  const lines: { text: string; isChanged: boolean }[][] = [[]];
  for (const { value, added, removed } of changes) {
    value.split("\n").forEach((text, index) => {
      if (index > 0) lines.push([]);
      if (text !== "") lines.at(-1)!.push({ text, isChanged: added || removed });
    });
  }
  return lines.slice(0, -1).map((parts) => ({ kind, parts }));
}

/** Return the lines without those that are far from each change, and `null` in the place of each run of them. */
function shorten(lines: readonly Line[]): (Line | null)[] {
  const isNear = lines.map((_, index) => lines.slice(Math.max(0, index - CONTEXT), index + CONTEXT + 1).some(({ kind }) => kind !== "same"));
  return lines.map((line, index) => (isNear[index] ? line : null)).filter((line, index, all) => line !== null || all[index - 1] !== null);
}
