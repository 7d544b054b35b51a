import { Link } from "@tanstack/react-router";

/** Render the link that opens a model in the playground. */
export function PlaygroundLink({ model, label = "Open in the playground" }: { model: string; label?: string }) {
  return (
    <Link to="/playground" search={{ model }} aria-label={`${label}: ${model}`}>
      {label}
    </Link>
  );
}

/** Render the link that makes an evaluation whose first run asks a model. */
export function EvaluationLink({ model }: { model: string }) {
  return (
    <Link to="/evals/new" search={{ model }} aria-label={`Evaluate ${model}`}>
      Evaluate
    </Link>
  );
}

/** Render the link that takes a tuned model into production by a gate. */
export function PromotionLink({ model }: { model: string }) {
  return (
    <Link to="/promotions/new" search={{ model }} aria-label={`Promote ${model}`}>
      Promote
    </Link>
  );
}

/** Render the link that makes a fine-tuning job of a model. */
export function TuningLink({ model }: { model: string }) {
  return (
    <Link to="/fine-tuning/new" search={{ model }} aria-label={`Fine-tune ${model}`}>
      Fine-tune
    </Link>
  );
}
