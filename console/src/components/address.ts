/** Values of filters: as the address holds them, and as the inputs of a form show them. */

/** Return a text of the address; the router reads a text of digits as a number. */
export function readText(value: unknown): string | undefined {
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  return typeof value === "string" && value !== "" ? value : undefined;
}

/** Return a time of the address, in whole seconds of Unix; undefined for anything else. */
export function readTime(value: unknown): number | undefined {
  const time = Number(value);
  return value !== null && value !== "" && Number.isInteger(time) && time >= 0 && time < 2 ** 40 ? time : undefined;
}

/** Return a time of Unix as an input of type `datetime-local` shows it, in the zone of the reader. */
export function toLocalInput(time: number | undefined): string {
  if (time === undefined) return "";
  const moment = new Date(time * 1_000);
  return new Date(moment.getTime() - moment.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

/** Return the time of Unix of an input of type `datetime-local`; undefined where it is empty. */
export function fromLocalInput(text: string): number | undefined {
  const time = new Date(text).getTime();
  return Number.isNaN(time) ? undefined : Math.floor(time / 1_000);
}
