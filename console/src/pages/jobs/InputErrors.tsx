import { useState } from "react";

import type { Schema } from "@/api/client";
import { Button } from "@/components/Button";
import { formatNumber } from "@/components/format";
import { Section } from "@/components/Page";
import { Table, type Column } from "@/components/Table";

import { cut, SHORT } from "./cut";

type InputError = Schema<"BatchError">;

const ERRORS_AT_ONCE = 100;

const ERROR_COLUMNS: readonly Column<InputError & { n: number }>[] = [
  { id: "line", header: "Line", cell: (error) => (error.line === null ? "–" : formatNumber(error.line)), align: "end", sort: (error) => error.line },
  { id: "code", header: "Code", cell: (error) => <code className="nowrap">{error.code}</code>, sort: (error) => error.code },
  { id: "message", header: "Message", cell: (error) => <span className="texts">{error.message && cut(error.message, SHORT).shown}</span> },
  { id: "param", header: "Field", cell: (error) => error.param && <code>{error.param}</code>, wide: true },
];

/** List errors of an input by line, a hundred more at each request. */
export function InputErrors({ errors, title = "Errors of the input" }: { errors: readonly InputError[]; title?: string }) {
  const [limit, setLimit] = useState(ERRORS_AT_ONCE);
  if (errors.length === 0) return null;
  return (
    <Section title={`${title} (${formatNumber(errors.length)})`}>
      <Table
        label={title}
        columns={ERROR_COLUMNS}
        rows={errors.slice(0, limit).map((error, n) => ({ ...error, n }))}
        rowKey={(error) => String(error.n)}
      />
      {errors.length > limit && (
        <div className="load-more">
          <Button onClick={() => setLimit(limit + ERRORS_AT_ONCE)}>Show more</Button>
        </div>
      )}
    </Section>
  );
}
