/** Characters of a text that are shown at first, and when the reader asks for more of it. */
export const SHORT = 1_200;
export const LONG = 50_000;

/** Return the beginning of a text, and how many characters are left out. A pair of surrogates is not torn. */
export function cut(text: string, limit: number): { shown: string; left: number } {
  if (text.length <= limit) return { shown: text, left: 0 };
  const last = text.charCodeAt(limit - 1);
  const end = last >= 0xd800 && last < 0xdc00 ? limit - 1 : limit;
  return { shown: text.slice(0, end), left: text.length - end };
}

const LISTED = 8;

/** Return an answer as text: a vector as its first values and its length. */
export function answerText(answer: string | number[] | null): string | null {
  if (!Array.isArray(answer)) return answer;
  const values = answer.slice(0, LISTED).map((value) => value.toPrecision(4));
  return `[${values.join(", ")}${answer.length > LISTED ? ", …" : ""}] (${answer.length} dimensions)`;
}
