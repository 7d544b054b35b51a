import { useEffect, useRef } from "react";

import { Input } from "./Field";
import { fromLocalInput, toLocalInput } from "./address";

interface FilterProps<Value> {
  value: Value | undefined;
  onCommit: (value: Value | undefined) => void;
  placeholder?: string;
  maxLength?: number;
}

/** Render a text that filters once it is complete: by Enter, or when the focus leaves it. */
export function TextFilter({ value, onCommit, ...props }: FilterProps<string>) {
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    input.current!.value = value ?? "";
  }, [value]);
  const commit = () => {
    const text = input.current!.value.trim() || undefined;
    if (text !== value) onCommit(text);
  };
  return (
    <Input
      ref={input}
      type="search"
      {...props}
      defaultValue={value}
      onBlur={commit}
      onKeyDown={(event) => event.key === "Enter" && commit()}
    />
  );
}

/** Render a time that filters as soon as it is chosen. */
export function TimeFilter({ value, onCommit }: FilterProps<number>) {
  return <Input type="datetime-local" value={toLocalInput(value)} onChange={(event) => onCommit(fromLocalInput(event.target.value))} />;
}
