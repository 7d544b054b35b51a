/** Read the parameters of the address of the files' page: their purpose. */
export function filesSearch(given: Record<string, unknown>): { purpose?: string } {
  return { purpose: typeof given.purpose === "string" && given.purpose !== "" ? given.purpose : undefined };
}
