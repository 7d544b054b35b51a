import { useMutation } from "@tanstack/react-query";
import { useState } from "react";

import { api, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { formatCount } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Card } from "@/components/Page";
import { State } from "@/components/State";
import { Time } from "@/components/Time";

type Source = Schema<"SourceObject">;
type NewSourceBody = Schema<"CreateSource">;

const PATH = "/v1/vector_stores/{vector_store_id}/sources";
const TYPES = [
  ["url", "URLs"],
  ["folder", "A folder of the server"],
  ["s3", "An S3 prefix"],
] as const;

/** List the sources of a store: folders, S3 prefixes and URLs that it is kept in step with. */
export function Sources({ storeId }: { storeId: string }) {
  const [isCreating, setCreating] = useState(false);
  const path = { vector_store_id: storeId };
  const sources = usePages(PATH, { path }, {
    pollWhile: (source) => source.status === "in_progress",
  });
  return (
    <div className="stack">
      <div className="actions">
        <Button onClick={() => setCreating(true)}>New source</Button>
      </div>
      <Listed what="the sources" query={sources} empty={<NoSources storeId={storeId} />}>
        {sources.rows.map((source) => (
          <SourceCard key={source.id} source={source} />
        ))}
      </Listed>
      {isCreating && <NewSource storeId={storeId} onClose={() => setCreating(false)} />}
    </div>
  );
}

function SourceCard({ source }: { source: Source }) {
  const params = { path: { vector_store_id: source.vector_store_id, source_id: source.id } };
  const act = useMutation({
    mutationFn: (action: "sync" | "pause" | "resume") => take(api.POST(`${PATH}/{source_id}/${action}`, { params })),
    onSettled: () => refresh(PATH),
  });

  async function remove() {
    await take(api.DELETE(`${PATH}/{source_id}`, { params }));
    await refresh(PATH);
  }

  return (
    <Card className="stack">
      <div className="row">
        <strong className="break">{locationOf(source)}</strong>
        <State state={source.status} />
        {source.paused && <State state="paused" />}
      </div>
      <SourceFacts source={source} />
      {source.last_error && (
        <p className="bad break">
          {source.last_error.message} ({source.last_error.code})
        </p>
      )}
      {act.isError && <Failure title="The source was not changed" error={act.error} />}
      <div className="actions">
        <Button busy={act.isPending} disabled={source.status === "in_progress"} onClick={() => act.mutate("sync")}>
          Sync now
        </Button>
        {source.cron !== null && (
          <Button busy={act.isPending} onClick={() => act.mutate(source.paused ? "resume" : "pause")}>
            {source.paused ? "Resume the schedule" : "Pause the schedule"}
          </Button>
        )}
        <ConfirmButton label="Delete" title="Delete this source?" action="Delete the source" onConfirm={remove}>
          <p>The files that it brought are deleted, too, in every vector store.</p>
        </ConfirmButton>
      </div>
    </Card>
  );
}

function SourceFacts({ source }: { source: Source }) {
  const { counts } = source;
  return (
    <>
      {counts && (
        <p className="muted">
          {formatCount(counts.seen, "document")}: {counts.added} added, {counts.changed} changed, {counts.removed} removed, {counts.unchanged} unchanged,{" "}
          {counts.failed} failed
        </p>
      )}
      <p className="muted small">
        {source.last_synced_at !== null && (
          <>
            synced <Time at={source.last_synced_at} />
          </>
        )}
        {source.cron !== null && ` · schedule ${source.cron} (${source.timezone ?? "UTC"})`}
        {source.next_run_at !== null && (
          <>
            {" · next sync "}
            <Time at={source.next_run_at} />
          </>
        )}
      </p>
    </>
  );
}

function locationOf(source: Source): string {
  if (source.type === "folder") return [source.path, source.glob].filter(Boolean).join("/");
  if (source.type === "s3") return [source.prefix, source.glob].filter(Boolean).join("/");
  const urls = source.urls ?? [];
  return urls.length > 1 ? `${urls[0]} and ${formatCount(urls.length - 1, "more URL")}` : (urls[0] ?? source.id);
}

function NewSource({ storeId, onClose }: { storeId: string; onClose: () => void }) {
  const [type, setType] = useState<Source["type"]>("url");
  const [location, setLocation] = useState("");
  const [glob, setGlob] = useState("");
  const [cron, setCron] = useState("");

  async function create() {
    const params = { path: { vector_store_id: storeId } };
    await take(api.POST(PATH, { params, body: bodyOf(type, location, glob, cron) }));
    await refresh(PATH);
  }

  return (
    <FormDialog title="New source" action="Create the source" failure="The source could not be created" onSubmit={create} onClose={onClose}>
      <Field label="Kind">
        <Select value={type} options={TYPES} onChange={(chosen) => setType(chosen as Source["type"])} />
      </Field>
      {type === "url" && (
        <Field label="URLs" hint="One a line, at most 1,000.">
          <TextArea required value={location} onChange={(event) => setLocation(event.target.value)} />
        </Field>
      )}
      {type === "folder" && (
        <Field label="Folder" hint="Absolute. The operator allows it by NIGHTMILL_SOURCE_FOLDERS.">
          <Input required placeholder="/srv/handbook" value={location} onChange={(event) => setLocation(event.target.value)} />
        </Field>
      )}
      {type === "s3" && (
        <Field label="Prefix" hint="The operator allows it by NIGHTMILL_SOURCE_S3.">
          <Input required placeholder="s3://bucket/folder" value={location} onChange={(event) => setLocation(event.target.value)} />
        </Field>
      )}
      {type === "folder" && (
        <Field label="Only files that match" hint="Empty: all.">
          <Input placeholder="**/*.md" value={glob} onChange={(event) => setGlob(event.target.value)} />
        </Field>
      )}
      <Field label="Schedule" hint={`As of cron, such as 0 3 * * *, in the time zone ${zone()}. Empty: once, now.`}>
        <Input placeholder="0 3 * * *" value={cron} onChange={(event) => setCron(event.target.value)} />
      </Field>
    </FormDialog>
  );
}

function bodyOf(type: Source["type"], location: string, glob: string, cron: string): NewSourceBody {
  const schedule = cron === "" ? {} : { cron, timezone: zone() };
  if (type === "folder") return { type, path: location, glob: glob || undefined, ...schedule };
  if (type === "s3") return { type, prefix: location, ...schedule };
  const urls = location.split("\n").map((url) => url.trim());
  return { type, urls: urls.filter(Boolean), ...schedule };
}

/** Return the time zone of the reader. */
function zone(): string {
  return Intl.DateTimeFormat().resolvedOptions().timeZone;
}

function NoSources({ storeId }: { storeId: string }) {
  return (
    <Empty
      title="No sources yet"
      command={`nightmill sources add ${storeId} /srv/handbook`}
      sdk={`client.post("/vector_stores/${storeId}/sources", cast_to=object, body={"type": "folder", "path": "/srv/handbook"})`}
    >
      A source keeps the store in step with a folder of the server, an S3 prefix or URLs: new documents come in, deleted ones leave.
    </Empty>
  );
}
