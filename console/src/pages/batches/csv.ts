/** Characters of a field at most: a quote without its end would make one of the rest of the file. */
const FIELD_LIMIT = 10_000_000;
const DELIMITERS = [",", ";", "\t", "|"] as const;

/** Return the delimiter of a table: the one that stands most often in its first line, quoted fields left out. */
export function delimiterOf(firstLine: string): string {
  const plain = firstLine.replaceAll(/"[^"]*"/g, "");
  const counts = DELIMITERS.map((delimiter) => plain.split(delimiter).length);
  return DELIMITERS[counts.indexOf(Math.max(...counts))]!;
}

/**
 * Split the text of a table, which comes in pieces, into rows of fields.
 *
 * A field in quotes may hold delimiters, line ends and doubled quotes. Empty lines are left out.
 */
export class CsvParser {
  private row: string[] = [];
  private field = "";
  private isQuoted = false;
  /** The field was in quotes, and the last character was a quote: its end, or the first half of a doubled one. */
  private isAfterQuote = false;
  private isAfterReturn = false;
  private rows: string[][] = [];
  private readonly special: RegExp;

  constructor(private readonly delimiter: string) {
    this.special = new RegExp(`["\r\n${delimiter === "|" ? "\\|" : delimiter}]`, "g");
  }

  /** Take the next piece of the text, and return the rows that it completes. Raises: Error for a field without an end. */
  push(text: string): string[][] {
    let at = 0;
    while (at < text.length) at = this.isQuoted ? this.takeQuoted(text, at) : this.takePlain(text, at);
    return this.completed();
  }

  /** Return the last row, which may have no line end. Raises: Error for a quoted field without an end. */
  end(): string[][] {
    if (this.isQuoted) throw new Error("A field in quotes has no closing quote.");
    this.endRow();
    return this.completed();
  }

  private completed(): string[][] {
    const { rows } = this;
    this.rows = [];
    return rows;
  }

  private takeQuoted(text: string, at: number): number {
    const quote = text.indexOf('"', at);
    const end = quote < 0 ? text.length : quote;
    this.append(text.slice(at, end));
    if (quote < 0) return end;
    this.isQuoted = false;
    this.isAfterQuote = true;
    return end + 1;
  }

  private takePlain(text: string, at: number): number {
    const character = text[at]!;
    if (character === '"') return this.takeQuote(at);
    if (character === "\n" && this.isAfterReturn) {
      this.isAfterReturn = false;
      return at + 1;
    }
    this.isAfterReturn = character === "\r";
    if (character === this.delimiter) this.endField();
    else if (character === "\r" || character === "\n") this.endRow();
    else return this.takeRun(text, at);
    return at + 1;
  }

  /** Take a quote: it opens an empty field, doubles one in quotes, and is a character of any other field. */
  private takeQuote(at: number): number {
    this.isAfterReturn = false;
    if (this.isAfterQuote || this.field === "") {
      if (this.isAfterQuote) this.field += '"';
      this.isQuoted = true;
      this.isAfterQuote = false;
    } else this.field += '"';
    return at + 1;
  }

  private takeRun(text: string, at: number): number {
    this.special.lastIndex = at;
    const end = this.special.exec(text)?.index ?? text.length;
    this.append(text.slice(at, end));
    this.isAfterQuote = false;
    return end;
  }

  private append(text: string): void {
    this.field += text;
    if (this.field.length > FIELD_LIMIT) throw new Error("A field is too long; perhaps a closing quote is missing.");
  }

  private endField(): void {
    this.row.push(this.field);
    this.field = "";
    this.isAfterQuote = false;
  }

  private endRow(): void {
    const isEmpty = this.row.length === 0 && this.field === "" && !this.isAfterQuote;
    this.endField();
    if (!isEmpty) this.rows.push(this.row);
    this.row = [];
  }
}

/** Read the rows of a table from a file, some at a time. Raises: Error for a table that cannot be read. */
export async function* readRows(file: Blob): AsyncGenerator<string[][]> {
  let parser: CsvParser | null = null;
  let head = "";
  // The decoder removes a byte order mark, and joins characters that two pieces share.
  for await (const text of textOf(file)) {
    if (parser === null) {
      head += text;
      if (!/[\r\n]/.test(head) && head.length < FIELD_LIMIT) continue;
      parser = new CsvParser(delimiterOf(head.split(/[\r\n]/, 1)[0]!));
      yield parser.push(head);
    } else yield parser.push(text);
  }
  if (parser === null) {
    parser = new CsvParser(delimiterOf(head));
    yield parser.push(head);
  }
  yield parser.end();
}

async function* textOf(file: Blob): AsyncGenerator<string> {
  const reader = file.stream().getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      yield decoder.decode(value, { stream: !done });
      if (done) return;
    }
  } finally {
    await reader.cancel();
  }
}
