import { Link, useRouter, type LinkProps } from "@tanstack/react-router";

const PLAYGROUND = "/playground";

/** Render the link that opens a model in the playground; nothing in a console without that page. */
export function PlaygroundLink({ model, label = "Open in the playground" }: { model: string; label?: string }) {
  const pages: Readonly<Record<string, unknown>> = useRouter().routesByPath;
  if (!(PLAYGROUND in pages)) return null;
  const target = { to: PLAYGROUND, search: { model } } as unknown as LinkProps;
  return (
    <Link {...target} aria-label={`Open ${model} in the playground`}>
      {label}
    </Link>
  );
}
