import { useMutation } from "@tanstack/react-query";
import { useState, type FormEvent, type ReactNode } from "react";

import { ApiError } from "@/api/client";

import { Button } from "./Button";
import { Dialog } from "./Dialog";
import { Failure } from "./Failure";
import { Refusal } from "./Field";
import { useLeaveQuestion } from "./leaving";

interface FormProps {
  /** The words of the button that sends the form: "Create the source". */
  action: string;
  /** What an error means: "The source was not created". */
  failure: string;
  /** Send the form. Its error stands below the fields, and at the `Field` of the parameter that it names. */
  onSubmit: () => Promise<unknown>;
  /** Close the dialog of the form. */
  onCancel?: () => void;
  /** The form is not complete yet. */
  disabled?: boolean;
  /** The fields. */
  children: ReactNode;
}

/** Render a form that sends its fields to the server. */
export function Form({ action, failure, onSubmit, onCancel, disabled = false, children }: FormProps) {
  const send = useMutation({ mutationFn: onSubmit });
  const [isBegun, setBegun] = useState(false);
  useLeaveQuestion(isBegun);

  function submit(event: FormEvent) {
    event.preventDefault();
    if (!disabled && !send.isPending) send.mutate();
  }

  return (
    <form className="stack" onSubmit={submit} onInput={() => setBegun(true)}>
      <Refusal value={send.error instanceof ApiError ? send.error : null}>{children}</Refusal>
      {send.isError && <Failure title={failure} error={send.error} />}
      <div className={onCancel ? "actions end" : "actions"}>
        {onCancel && <Button onClick={onCancel}>Cancel</Button>}
        <Button type="submit" tone="primary" busy={send.isPending} disabled={disabled}>
          {action}
        </Button>
      </div>
    </form>
  );
}

interface FormDialogProps extends Omit<FormProps, "onCancel"> {
  title: string;
  onClose: () => void;
}

/** Render a form in a dialog, which closes when the server has accepted it. Render it only while it is open. */
export function FormDialog({ title, onClose, onSubmit, ...form }: FormDialogProps) {
  async function submit() {
    await onSubmit();
    onClose();
  }
  return (
    <Dialog title={title} open onClose={onClose}>
      <Form {...form} onSubmit={submit} onCancel={onClose} />
    </Dialog>
  );
}
