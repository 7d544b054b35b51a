import { Link } from "@tanstack/react-router";

/** Render the link that opens a model in the playground. */
export function PlaygroundLink({ model, label = "Open in the playground" }: { model: string; label?: string }) {
  return (
    <Link to="/playground" search={{ model }} aria-label={`Open ${model} in the playground`}>
      {label}
    </Link>
  );
}
