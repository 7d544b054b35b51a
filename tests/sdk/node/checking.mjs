// How a check is written: what it is told, what it is kept as, how it compares. The same as `../checking.py`.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";

import OpenAI, { toFile } from "openai";

export const FACTS = JSON.parse(process.argv[2]);
export const MODEL = FACTS.model;
const PATIENCE = 30_000; // milliseconds for what takes well under a second
const ENDED = ["completed", "failed", "expired", "cancelled"];

export const CHECKS = new Map();
export const RAW = new Set();

export const client = new OpenAI({ apiKey: FACTS.key, baseURL: `${FACTS.url}/v1` });

export const check = (name, work) => CHECKS.set(name, work);
export const same = (got, wanted) => assert.deepStrictEqual(got, wanted);
export const fresh = (word) => `${word}-${randomUUID().slice(0, 12)}`;
export const small = (name, text = "x") => toFile(Buffer.from(text), name);
export const ids = (objects) => objects.map((one) => one.id);

/** A client whose requests go through the front, under a name. */
export const through = (kind, name, more = {}) =>
  new OpenAI({ apiKey: FACTS.key, baseURL: `${FACTS.front}/${kind}/${name}/v1`, ...more });

/** What the front knows. */
export const told = async (path) => (await fetch(`${FACTS.front}/${path}`)).json();

export async function until(holds, what) {
  const ends = Date.now() + PATIENCE;
  for (;;) {
    const found = await holds();
    if (found) return found;
    assert.ok(Date.now() < ends, `${what}: not within ${PATIENCE} ms`);
    await pause(50);
  }
}

/** The error that a call raises, which is of this class and no other. */
export async function raised(wanted, call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    assert.ok(error.constructor === wanted, `got ${error?.stack}, wanted ${wanted.name}`);
    return error;
  }
  assert.fail(`got ${JSON.stringify(answer)?.slice(0, 300)}, wanted ${wanted.name}`);
}

export function factsOf(error) {
  assert.ok(error.requestID, "no request id");
  return [error.status, error.type, error.code, error.param];
}

/** All that a list has, over all of its pages. */
export async function all(list) {
  const found = [];
  for await (const one of list) found.push(one);
  return found;
}

/** The ids of a list, page by page. */
export async function pagesOf(list) {
  const pages = [];
  for await (const page of (await list).iterPages()) pages.push(ids(page.data));
  return pages;
}

export const bytesOf = async (id) => Buffer.from(await (await client.files.content(id)).arrayBuffer());

export async function inputFile(lines) {
  const content = Buffer.from(lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
  return (await client.files.create({ file: await toFile(content, "input.jsonl"), purpose: "batch" })).id;
}

export const ended = (batch) =>
  until(async () => {
    const now = await client.batches.retrieve(batch.id);
    return ENDED.includes(now.status) && now;
  }, `the end of ${batch.id}`);

export async function linesOf(fileId) {
  assert.ok(fileId, "there is no file");
  const lines = (await bytesOf(fileId)).toString().trimEnd().split("\n").map((line) => JSON.parse(line));
  const found = new Map(lines.map((line) => [line.custom_id, line]));
  same(found.size, lines.length);
  return found;
}
