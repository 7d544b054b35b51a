import { ApiError, readError, type Schema } from "./client";

/** Ask the API for the project of a key. Raises: ApiError where it refuses the key or cannot be reached. */
export async function readProject(key: string, signal?: AbortSignal): Promise<Schema<"ProjectObject">> {
  const answer = await fetch("/v1/project", { headers: { Authorization: `Bearer ${key}` }, signal }).catch((cause: unknown) => {
    throw new ApiError(0, "The server cannot be reached, or the key has characters that no key has.", null, null, null, { cause });
  });
  if (!answer.ok) throw await readError(answer);
  return (await answer.json()) as Schema<"ProjectObject">;
}
