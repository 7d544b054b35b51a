import { useEffect, useRef, type ReactNode } from "react";

import { Button } from "./Button";
import { formatName } from "./format";

interface DialogProps {
  title: string;
  open: boolean;
  onClose: () => void;
  children: ReactNode;
  className?: string;
}

/** Render a modal dialog. Escape and a click beside it close it. */
export function Dialog({ title, open, onClose, children, className = "" }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (!open) return;
    const opener = document.activeElement;
    dialog.current?.showModal();
    return () => giveBack(opener);
  }, [open]);
  if (!open) return null;
  return (
    // eslint-disable-next-line jsx-a11y/no-noninteractive-element-interactions, jsx-a11y/click-events-have-key-events -- Escape closes it, too
    <dialog
      ref={dialog}
      className={`dialog ${className}`}
      aria-label={formatName(title)}
      onClose={onClose}
      onClick={(event) => event.target === dialog.current && onClose()}
    >
      <div className="dialog-body">
        <header className="dialog-head">
          <h2>{formatName(title)}</h2>
          <Button tone="plain" aria-label="Close" onClick={onClose}>
            ✕
          </Button>
        </header>
        {children}
      </div>
    </dialog>
  );
}

/** Move the focus back to where it was before the dialog, or to the content where that is gone. */
function giveBack(opener: Element | null) {
  const target = opener?.isConnected && opener !== document.body ? opener : document.getElementById("content");
  (target as HTMLElement | null)?.focus();
}
