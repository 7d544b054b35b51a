import { createContext, useContext, useId, type ComponentProps, type ReactNode } from "react";

import type { ApiError } from "@/api/client";

/** The error with which the server refused the form around the fields. */
export const Refusal = createContext<ApiError | null>(null);

const Described = createContext<{ id: string; describedBy: string | undefined; invalid: boolean } | null>(null);

interface FieldProps {
  label: string;
  /** One sentence below the field. */
  hint?: ReactNode;
  /** What is wrong with the value. */
  error?: string | null;
  /** The parameter of the API that the field fills: an error that names it stands at the field. */
  param?: string;
  /** Exactly one `Input`, `Select` or `TextArea`. */
  children: ReactNode;
}

/** Render a field of a form: label, input, hint, error. */
export function Field({ label, hint, param, children, ...props }: FieldProps) {
  const id = useId();
  const refusal = useContext(Refusal);
  const error = props.error ?? (param !== undefined && refusal?.param === param ? refusal.message : null);
  const text = error ?? hint;
  const describedBy = text ? `${id}-text` : undefined;
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      <Described value={{ id, describedBy, invalid: Boolean(error) }}>{children}</Described>
      {text && (
        <p id={`${id}-text`} className={error ? "field-error" : "field-hint"}>
          {text}
        </p>
      )}
    </div>
  );
}

function useDescribed() {
  const field = useContext(Described);
  return field && { id: field.id, "aria-describedby": field.describedBy, "aria-invalid": field.invalid || undefined };
}

/** Render an input of a `Field`. */
export function Input(props: ComponentProps<"input">) {
  return <input className="input" autoComplete="off" {...useDescribed()} {...props} />;
}

/** Render an input of several lines of a `Field`. */
export function TextArea(props: ComponentProps<"textarea">) {
  return <textarea className="input" rows={4} {...useDescribed()} {...props} />;
}

interface SelectProps extends Omit<ComponentProps<"select">, "onChange" | "value"> {
  value: string;
  onChange: (value: string) => void;
  /** The values with their words. A value that is none of them, such as one from the address, is shown as it is. */
  options: readonly (readonly [value: string, label: string])[];
}

/** Render a choice of a `Field`, or, with an `aria-label`, one that stands alone. */
export function Select({ options, onChange, ...props }: SelectProps) {
  const isListed = options.some(([value]) => value === props.value);
  return (
    <select className="input" {...useDescribed()} {...props} onChange={(event) => onChange(event.target.value)}>
      {options.map(([value, label]) => (
        <option key={value} value={value}>
          {label}
        </option>
      ))}
      {!isListed && <option value={props.value}>{props.value}</option>}
    </select>
  );
}
