import { useMutation } from "@tanstack/react-query";
import { useState, type ReactNode } from "react";

import { Button } from "./Button";
import { Dialog } from "./Dialog";
import { Failure } from "./Failure";

interface ConfirmProps {
  /** The question: "Cancel this job?" */
  title: string;
  /** The words of the button that does it: "Cancel the job". */
  action: string;
  open: boolean;
  onClose: () => void;
  /** Does it. The dialog closes after success, and shows the error of a failure. */
  onConfirm: () => Promise<unknown>;
  /** What will happen. */
  children: ReactNode;
  tone?: "primary" | "danger";
}

/** Ask before something is done that cannot be undone. */
export function Confirm({ title, action, open, onClose, onConfirm, children, tone = "danger" }: ConfirmProps) {
  const act = useMutation({ mutationFn: onConfirm, onSuccess: close });
  function close() {
    act.reset();
    onClose();
  }
  return (
    <Dialog title={title} open={open} onClose={close}>
      <div className="stack">
        {children}
        {act.isError && <Failure error={act.error} />}
        <div className="actions end">
          <Button onClick={close}>Keep it</Button>
          <Button tone={tone} busy={act.isPending} onClick={() => act.mutate()}>
            {action}
          </Button>
        </div>
      </div>
    </Dialog>
  );
}

interface ConfirmButtonProps extends Omit<ConfirmProps, "open" | "onClose"> {
  /** The words of the button that asks: "Delete". */
  label: string;
  /** The name of the button for screen readers, where several have the same words. */
  name?: string;
  /** Render the button small, as in a row of a table. */
  small?: boolean;
}

/** Render a button that asks before it does something. */
export function ConfirmButton({ label, name, small = false, ...question }: ConfirmButtonProps) {
  const [isOpen, setOpen] = useState(false);
  return (
    <>
      <Button className={small ? "copy" : ""} aria-label={name} onClick={() => setOpen(true)}>
        {label}
      </Button>
      <Confirm {...question} open={isOpen} onClose={() => setOpen(false)} />
    </>
  );
}
