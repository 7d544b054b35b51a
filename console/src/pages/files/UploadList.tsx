import { Button } from "@/components/Button";
import { messageOf } from "@/components/Failure";
import { formatName } from "@/components/format";
import { Progress } from "@/components/Progress";
import { Bytes } from "@/components/Quantity";
import { State } from "@/components/State";

import { cancelUpload, dismissUpload, useUploads, type Upload } from "./uploads";

import "./files.css";

const SHOWN = 20;

/** List the uploads that go on, wait or have failed. */
export function UploadList() {
  const uploads = useUploads();
  if (uploads.length === 0) return null;
  return (
    <section className="card stack" aria-label="Uploads">
      <ul className="uploads">
        {uploads.slice(0, SHOWN).map((upload) => (
          <li key={upload.id} className="row">
            <Entry upload={upload} />
          </li>
        ))}
      </ul>
      {uploads.length > SHOWN && <p className="muted">and {uploads.length - SHOWN} more</p>}
    </section>
  );
}

function Entry({ upload }: { upload: Upload }) {
  const isOver = upload.state === "failed" || upload.state === "cancelled";
  return (
    <>
      <span className="break upload-name">{formatName(upload.name)}</span>
      <Bytes value={upload.bytes} />
      {isOver ? <State state={upload.state} /> : <Progress label={`Upload of ${upload.name}`} total={upload.bytes} completed={upload.sent} />}
      {upload.error && (
        <span className="bad break" role="alert">
          {messageOf(upload.error)}
        </span>
      )}
      <Button tone="plain" aria-label={`${isOver ? "Dismiss" : "Cancel"} ${upload.name}`} onClick={() => (isOver ? dismissUpload : cancelUpload)(upload.id)}>
        {isOver ? "Dismiss" : "Cancel"}
      </Button>
    </>
  );
}
