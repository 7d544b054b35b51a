// @vitest-environment node

import { describe, expect, it } from "vitest";

import { CsvParser, delimiterOf, readRows } from "@/pages/batches/csv";

/** Parse a text that comes in pieces of `size` characters. */
function parse(text: string, size = text.length, delimiter = ","): string[][] {
  const parser = new CsvParser(delimiter);
  const rows: string[][] = [];
  for (let at = 0; at < text.length; at += size) rows.push(...parser.push(text.slice(at, at + size)));
  return [...rows, ...parser.end()];
}

async function readAll(content: BlobPart[]): Promise<string[][]> {
  const rows: string[][] = [];
  for await (const some of readRows(new Blob(content))) rows.push(...some);
  return rows;
}

const TABLES: [name: string, text: string, rows: string[][]][] = [
  ["plain fields", "a,b\n1,2\n", [["a", "b"], ["1", "2"]]],
  ["no line end at the end", "a,b\n1,2", [["a", "b"], ["1", "2"]]],
  ["line ends of Windows and of old Macs", "a\r\nb\rc", [["a"], ["b"], ["c"]]],
  ["delimiters and line ends in quotes", '"a,1","b\r\n2"\nc', [["a,1", "b\r\n2"], ["c"]]],
  ["doubled quotes", '"say ""hi""",""""', [['say "hi"', '"']]],
  ["quotes inside of plain fields", '5" nail,b"c', [['5" nail', 'b"c']]],
  ["empty fields, and empty lines between rows", "a,,\n\n\r\n,b,\n", [["a", "", ""], ["", "b", ""]]],
  ["an empty field in quotes", '""\na', [[""], ["a"]]],
  ["characters behind a closing quote", '"a"b,c', [["ab", "c"]]],
];

describe("the parser of tables", () => {
  it.each(TABLES)("reads %s", (_name, text, rows) => expect(parse(text)).toEqual(rows));

  it.each(TABLES)("reads %s in pieces of any size", (_name, text, rows) => {
    for (const size of [1, 2, 3, 5]) expect(parse(text, size)).toEqual(rows);
  });

  it.each([";", "\t", "|"])("splits fields by %j", (delimiter) => {
    expect(parse(`a${delimiter}"b${delimiter}c"\n`, 2, delimiter)).toEqual([["a", `b${delimiter}c`]]);
  });

  it("refuses a quote without an end", () => {
    expect(() => parse('a\n"b')).toThrow("no closing quote");
    expect(() => parse(`"${"x".repeat(10_000_001)}`)).toThrow("too long");
  });

  it.each([
    ["a,b;c,d", ","],
    ["a;b;c", ";"],
    ["a\tb", "\t"],
    ["a|b", "|"],
    ['"a,b,c";d', ";"],
    ["a", ","],
  ])("finds the delimiter of %j", (line, delimiter) => expect(delimiterOf(line)).toBe(delimiter));
});

describe("the reader of files", () => {
  it("removes a byte order mark, and reads characters of several bytes", async () => {
    expect(await readAll(["\uFEFFname;text\n", "Zoë;", "日本\n"])).toEqual([["name", "text"], ["Zoë", "日本"]]);
  });

  it("reads a table of one line, and an empty one", async () => {
    expect(await readAll(["a;b"])).toEqual([["a", "b"]]);
    expect(await readAll([""])).toEqual([]);
  });
});
