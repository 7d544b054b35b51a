import { Fragment } from "react";

/** Show a sentence of the API; what stands between backticks, such as a command, is shown as code. */
export function Prose({ text }: { text: string }) {
  return text.split("`").map((part, n) => (n % 2 === 1 ? <code key={n}>{part}</code> : <Fragment key={n}>{part}</Fragment>));
}
