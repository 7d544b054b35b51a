import { request } from "./client";

/**
 * Let the browser save what a path of the API answers, read with the key of the project.
 *
 * Raises: ApiError.
 */
export async function download(path: string, filename: string): Promise<void> {
  const answer = await request(path);
  save(await answer.blob(), filename);
}

/** Let the browser save a content as a file. */
export function save(content: Blob, filename: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = filename;
  link.click();
  // The browser has the content from the click on, yet some read it a moment later.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
