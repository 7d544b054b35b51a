import { Chart, type Series } from "@/components/Chart";
import { Card } from "@/components/Page";

import type { Progress } from "./tuning";

type Point = Progress["data"][number];

const LOSS_DIGITS = 3;

/** Draw how the loss and the accuracy of a training went, in the steps trained so far. */
export function Curves({ points }: { points: readonly Point[] }) {
  if (points.length === 0) return <p className="muted">No step has been trained yet.</p>;
  const steps = points.map(({ step }) => step);
  return (
    <div className="grid halves">
      <Card>
        <Chart steps title="Loss" x={steps} series={curvesOf(points, "train_loss", "valid_loss")} format={(value) => value.toFixed(LOSS_DIGITS)} />
      </Card>
      <Card>
        <Chart
          steps
          title="Accuracy of tokens"
          x={steps}
          series={curvesOf(points, "train_mean_token_accuracy", "valid_mean_token_accuracy")}
          format={(value) => value.toFixed(2)}
        />
      </Card>
    </div>
  );
}

/** Return the curve of the training, and that of the validation where there is one. */
function curvesOf(points: readonly Point[], training: keyof Point, validation: keyof Point): Series[] {
  const curves: Series[] = [
    { label: "training", values: points.map((point) => point[training]), connected: true },
    { label: "validation", colour: "--warning", values: points.map((point) => point[validation]), connected: true },
  ];
  return curves.filter(({ values }) => values.some((value) => value !== null));
}
