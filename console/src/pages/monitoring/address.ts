import { readText } from "@/components/address";

/** The parameters of the address of a drift monitor. */
interface MonitorSearch {
  /** The check that is shown; the newest one unless it is given. */
  check?: string;
}

/** Read from the address which check of a monitor is shown. */
export function monitorSearch({ check }: Record<string, unknown>): MonitorSearch {
  return { check: readText(check) };
}
