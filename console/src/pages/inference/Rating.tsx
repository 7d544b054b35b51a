import { useMutation } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";

import { api, take } from "@/api/client";
import { Button } from "@/components/Button";
import { Failure } from "@/components/Failure";
import { Field, Input } from "@/components/Field";

import type { Target } from "./feedback";

const THUMBS = [
  [1, "up", "Good answer"],
  [-1, "down", "Bad answer"],
] as const;
const MAX_COMMENT = 4_096;

/** Rate a stored answer by a thumb, then with a comment. A later opinion takes the place of the earlier one. */
export function Rating({ target }: { target: Target }) {
  const [comment, setComment] = useState("");
  const save = useMutation({
    mutationFn: (score: number) => take(api.POST("/v1/feedback", { body: { target, score, comment: comment || null } })),
  });
  const score = save.variables;

  function submit(event: FormEvent) {
    event.preventDefault();
    if (score !== undefined) save.mutate(score);
  }

  return (
    <div className="rating stack">
      <div className="actions" role="group" aria-label="Feedback">
        {THUMBS.map(([value, direction, name]) => (
          <Button key={value} tone="plain" className="copy" aria-pressed={score === value} busy={save.isPending} onClick={() => save.mutate(value)}>
            <svg className={`thumb ${direction}`} viewBox="0 0 24 24" aria-hidden="true">
              <path d="M3 10h4v10H3zM9 10l4-8c1.5 0 2.5 1 2 3l-1 4h6l-1.5 9.5c-.2 1-.9 1.5-2 1.5H9z" />
            </svg>{" "}
            {name}
          </Button>
        ))}
        <span className="muted small" role="status">
          {save.isSuccess && "Feedback saved"}
        </span>
      </div>
      {score !== undefined && (
        <form className="row" onSubmit={submit}>
          <Field label="Comment">
            <Input value={comment} maxLength={MAX_COMMENT} onChange={(event) => setComment(event.target.value)} />
          </Field>
          <Button type="submit" busy={save.isPending} disabled={comment === ""}>
            Save the comment
          </Button>
        </form>
      )}
      {save.isError && <Failure title="The feedback was not saved" error={save.error} />}
    </div>
  );
}
