import { useId, useState, type DragEvent, type ReactNode } from "react";

interface DropZoneProps {
  /** What to drop: "Drop files here". */
  label: string;
  /** What is accepted, and what happens to it. */
  hint?: ReactNode;
  onFiles: (files: File[]) => void;
  /** Take several files at once. */
  multiple?: boolean;
  /** The types that the file dialog offers, as of `<input accept>`. */
  accept?: string;
}

/** Render a field that takes files by drop, by click and by keyboard. */
export function DropZone({ label, hint, onFiles, multiple = false, accept }: DropZoneProps) {
  const id = useId();
  const [isOver, setOver] = useState(false);

  function take(files: FileList | null) {
    const taken = [...(files ?? [])];
    if (taken.length > 0) onFiles(multiple ? taken : taken.slice(0, 1));
  }

  function drop(event: DragEvent) {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer.files);
  }

  return (
    <label
      htmlFor={id}
      className={isOver ? "drop-zone over" : "drop-zone"}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={drop}
    >
      <span>
        <strong>{label}</strong> or <span className="link">choose {multiple ? "files" : "a file"}</span>
      </span>
      {hint && <span className="muted small">{hint}</span>}
      <input
        id={id}
        type="file"
        className="hidden"
        multiple={multiple}
        accept={accept}
        onChange={(event) => {
          take(event.target.files);
          event.target.value = "";
        }}
      />
    </label>
  );
}
