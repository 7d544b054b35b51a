import { Link } from "@tanstack/react-router";

import { Button } from "@/components/Button";
import { formatBytes, formatCount, formatDuration, formatNumber } from "@/components/format";
import { Card } from "@/components/Page";
import { Figure } from "@/components/Quantity";
import { Time } from "@/components/Time";

import { ErrorTable } from "./LineErrors";
import type { Validation } from "./tuning";

interface ExaminationProps {
  validation: Validation;
  /** Examine the files again; with `measure`, three steps are trained to measure what cannot be estimated. */
  onExamine: (measure: boolean) => void;
  isExamining: boolean;
}

/** Show what the examination of a job's files has brought: errors by line, or the numbers of the training. */
export function Examination({ validation, onExamine, isExamining }: ExaminationProps) {
  return (
    <div className="stack">
      {validation.warnings.map((warning) => (
        <p key={warning} className="banner">
          {warning}
        </p>
      ))}
      {validation.valid ? <Numbers validation={validation} /> : <ErrorTable errors={validation.errors.data} truncated={validation.errors_truncated} />}
      {validation.valid && !validation.estimate && <Unmeasured validation={validation} onExamine={onExamine} isExamining={isExamining} />}
    </div>
  );
}

function Numbers({ validation: { examples, validation_examples, tokens, trained_tokens, steps, hyperparameters, estimate } }: { validation: Validation }) {
  const held = validation_examples ? `${formatNumber(validation_examples)} for validation` : undefined;
  const chosen = hyperparameters && `${hyperparameters.n_epochs} ${hyperparameters.n_epochs === 1 ? "epoch" : "epochs"}, batches of ${hyperparameters.batch_size}`;
  return (
    <Card>
      <div className="grid">
        <Figure name="Examples" value={formatNumber(examples ?? 0)} remark={held} />
        <Figure name="Trained tokens" value={formatNumber(trained_tokens ?? 0)} remark={`${formatCount(tokens ?? 0, "token")} an epoch`} />
        <Figure name="Steps" value={formatNumber(steps ?? 0)} remark={chosen} />
        {estimate && (
          <>
            <Figure name="Time" value={formatDuration(estimate.seconds)} remark={<>measured <Time at={estimate.measured_at} /></>} />
            <Figure name="Memory of a step" value={formatBytes(estimate.memory_bytes)} />
          </>
        )}
      </div>
    </Card>
  );
}

function Unmeasured({ validation, onExamine, isExamining }: ExaminationProps) {
  if (validation.measuring_job) {
    return (
      <div className="row">
        <p className="muted">
          Three steps are trained to measure seconds and memory, by{" "}
          <Link to="/fine-tuning/$jobId" params={{ jobId: validation.measuring_job }}>
            {validation.measuring_job}
          </Link>
          . Examine the files again when that job has ended.
        </p>
        <Button busy={isExamining} onClick={() => onExamine(false)}>
          Examine again
        </Button>
      </div>
    );
  }
  return (
    <div className="row">
      <p className="muted">No job has trained this model so yet: seconds and memory are not known.</p>
      <Button busy={isExamining} onClick={() => onExamine(true)}>
        Measure three steps
      </Button>
    </div>
  );
}
