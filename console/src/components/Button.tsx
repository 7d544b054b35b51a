import type { ComponentProps } from "react";

interface ButtonProps extends ComponentProps<"button"> {
  /** `primary` is the main action of a page, `danger` one that destroys, `plain` one without a border. */
  tone?: "normal" | "primary" | "danger" | "plain";
  /** Show that the action runs, and take no second click. */
  busy?: boolean;
}

/** Render a button. */
export function Button({ tone = "normal", busy = false, disabled, type = "button", className = "", ...rest }: ButtonProps) {
  return (
    <button
      {...rest}
      type={type}
      disabled={disabled === true || busy}
      aria-busy={busy || undefined}
      className={`button ${tone} ${className}`}
    />
  );
}
