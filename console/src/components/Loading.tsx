/** Render that something is being loaded. It appears only after a moment, so that quick answers do not flicker. */
export function Loading({ what = "the page" }: { what?: string }) {
  return (
    <p className="loading" role="status">
      Loading {what} …
    </p>
  );
}
