import { Button } from "@/components/Button";
import { Field, Input, Select } from "@/components/Field";
import { words } from "@/components/format";

import { COLUMN_TYPES, type AnswerColumn } from "./requests";

interface SchemaEditorProps {
  columns: readonly AnswerColumn[];
  onChange: (columns: readonly AnswerColumn[]) => void;
}

const TYPES = COLUMN_TYPES.map((type) => [type, words(type)] as const);
const NEW: AnswerColumn = { name: "", type: "string", choices: "" };

/** Edit the columns of the answers: their names, their types, and the choices of those that take a few texts. */
export function SchemaEditor({ columns, onChange }: SchemaEditorProps) {
  const change = (index: number, changes: Partial<AnswerColumn>) =>
    onChange(columns.map((column, n) => (n === index ? { ...column, ...changes } : column)));
  return (
    <div className="stack" role="group" aria-label="Columns of the answers">
      <h3>Columns of the answers</h3>
      {columns.length === 0 && <p className="muted small">Without columns each answer is one text.</p>}
      {columns.map((column, index) => (
        <div key={index} className="filters">
          <Field label={`Column ${index + 1}`}>
            <Input maxLength={64} value={column.name} onChange={(event) => change(index, { name: event.target.value })} />
          </Field>
          <Field label={`Type of column ${index + 1}`}>
            <Select value={column.type} onChange={(type) => change(index, { type: type as AnswerColumn["type"] })} options={TYPES} />
          </Field>
          {column.type === "choice" && (
            <Field label={`Choices of column ${index + 1}`}>
              <Input placeholder="small, large" value={column.choices} onChange={(event) => change(index, { choices: event.target.value })} />
            </Field>
          )}
          <Button tone="plain" className="fit" aria-label={`Remove column ${index + 1}`} onClick={() => onChange(columns.filter((_, n) => n !== index))}>
            Remove
          </Button>
        </div>
      ))}
      <div className="actions">
        <Button onClick={() => onChange([...columns, NEW])}>Add a column</Button>
      </div>
    </div>
  );
}
