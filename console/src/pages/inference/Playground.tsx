import { useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { useState, type KeyboardEvent } from "react";

import { get } from "@/api/get";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { words } from "@/components/format";
import { useLeaveQuestion } from "@/components/leaving";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { generates, useModels, type Model } from "@/pages/fleet/models/served";

import type { PlaygroundSearch } from "./address";
import { useConversation } from "./conversation";
import { Lane } from "./Lane";
import { DEFAULT_SETTINGS, type Protocol, type Settings } from "./requests";

import "./playground.css";

const route = getRouteApi("/playground");
const PROTOCOLS = [
  ["chat", "Chat completions"],
  ["responses", "Responses"],
] as const;

/** Ask one model, or two side by side. */
export default function Playground() {
  const models = useModels();
  return (
    <Page title="Playground" description="Ask a model, with the same engines that run the batches.">
      <Loaded what="the models" query={models}>
        {({ data }) => <Bench models={data.filter(generates)} />}
      </Loaded>
    </Page>
  );
}

function Bench({ models }: { models: readonly Model[] }) {
  const search = route.useSearch();
  const navigate = route.useNavigate();
  const [settings, setSettings] = useState(DEFAULT_SETTINGS);
  const [first, second] = [useConversation(), useConversation()];
  useLeaveQuestion(first.turns.length > 0 || second.turns.length > 0);
  const model = search.model ?? (models.find((each) => each.serving?.state === "ready") ?? models[0])?.id;
  if (model === undefined) return <NoModels />;

  const protocol = search.api ?? "chat";
  const lanes = [{ model, conversation: first }, ...(search.second === undefined ? [] : [{ model: search.second, conversation: second }])];
  const asked = { ...settings, store: search.store ?? "" };

  function change(next: Partial<PlaygroundSearch>) {
    void navigate({ search: { ...search, ...next }, replace: true });
  }

  return (
    <div className="playground">
      <div className="stack">
        <div className="filters">
          <ModelField label="Model" models={models} value={model} onChange={(chosen) => change({ model: chosen })} />
          <ModelField
            label="Second model"
            models={models}
            value={search.second ?? ""}
            none="none"
            onChange={(chosen) => change({ second: chosen || undefined })}
          />
          <Field label="API">
            <Select value={protocol} options={PROTOCOLS} onChange={(chosen) => change({ api: chosen === "responses" ? chosen : undefined })} />
          </Field>
        </div>
        <div className="lanes">
          {lanes.map((lane, index) => (
            <Lane
              key={index}
              {...lane}
              onRetry={(question) => void lane.conversation.ask(question, protocol, lane.model, asked)}
            />
          ))}
        </div>
        <Composer
          isBusy={lanes.some((lane) => lane.conversation.isStreaming)}
          onAsk={(question) => lanes.forEach((lane) => void lane.conversation.ask(question, protocol, lane.model, asked))}
          onStop={() => lanes.forEach((lane) => lane.conversation.stop())}
          onClear={() => [first, second].forEach((conversation) => conversation.clear())}
        />
      </div>
      <Parameters protocol={protocol} settings={settings} onChange={setSettings} store={asked.store} onStore={(store) => change({ store: store || undefined })} />
    </div>
  );
}

function ModelField(props: { label: string; models: readonly Model[]; value: string; none?: string; onChange: (model: string) => void }) {
  const { label, models, value, none, onChange } = props;
  const options = models.map((model): [string, string] => [model.id, labelOf(model)]);
  if (none !== undefined) options.unshift(["", none]);
  const serving = models.find((model) => model.id === value)?.serving;
  const hint = serving && serving.state !== "ready" ? (serving.reason ?? words(serving.state)) : undefined;
  return (
    <Field label={label} hint={hint}>
      <Select value={value} options={options} onChange={onChange} />
    </Field>
  );
}

function labelOf({ id, serving }: Model): string {
  return serving && serving.state !== "ready" ? `${id} (${words(serving.state)})` : id;
}

interface ComposerProps {
  isBusy: boolean;
  onAsk: (question: string) => void;
  onStop: () => void;
  onClear: () => void;
}

/** Take a question. Enter sends it, Shift and Enter begin a line. */
function Composer({ isBusy, onAsk, onStop, onClear }: ComposerProps) {
  const [question, setQuestion] = useState("");

  function send() {
    if (question.trim() === "" || isBusy) return;
    onAsk(question);
    setQuestion("");
  }

  function press(event: KeyboardEvent) {
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    send();
  }

  return (
    <form
      className="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <Field label="Question" hint="Enter sends, Shift and Enter begin a new line.">
        <TextArea rows={3} value={question} onChange={(event) => setQuestion(event.target.value)} onKeyDown={press} />
      </Field>
      <div className="actions">
        <Button type="submit" tone="primary" disabled={isBusy || question.trim() === ""}>
          Send
        </Button>
        <Button disabled={!isBusy} onClick={onStop}>
          Stop
        </Button>
        <Button tone="plain" onClick={onClear}>
          New conversation
        </Button>
      </div>
    </form>
  );
}

interface ParametersProps {
  protocol: Protocol;
  settings: Settings;
  onChange: (settings: Settings) => void;
  store: string;
  onStore: (store: string) => void;
}

function Parameters({ protocol, settings, onChange, store, onStore }: ParametersProps) {
  function change(next: Partial<Settings>) {
    onChange({ ...settings, ...next });
  }
  return (
    <section className="card stack parameters" aria-label="Parameters">
      <h2>Parameters</h2>
      <Field label={protocol === "chat" ? "System message" : "Instructions"}>
        <TextArea value={settings.system} onChange={(event) => change({ system: event.target.value })} />
      </Field>
      <Field label="Temperature" hint="0 to 2. Empty: the model's own.">
        <Input type="number" min={0} max={2} step={0.1} value={settings.temperature} onChange={(event) => change({ temperature: event.target.value })} />
      </Field>
      <Field label="Longest answer" hint="In tokens. Empty: as the model's context allows.">
        <Input type="number" min={1} step={1} value={settings.maxTokens} onChange={(event) => change({ maxTokens: event.target.value })} />
      </Field>
      {protocol === "chat" ? (
        <>
          <Field label="Stop at" hint="Texts at which the answer ends, one a line, at most four.">
            <TextArea rows={2} value={settings.stop} onChange={(event) => change({ stop: event.target.value })} />
          </Field>
          <Field label="Seed" hint="The same seed makes the same answer more likely.">
            <Input type="number" step={1} value={settings.seed} onChange={(event) => change({ seed: event.target.value })} />
          </Field>
        </>
      ) : (
        <FileSearch settings={settings} change={change} store={store} onStore={onStore} />
      )}
      <label className="row">
        <input type="checkbox" checked={settings.keep} onChange={(event) => change({ keep: event.target.checked })} />
        Store the answers to rate them
      </label>
    </section>
  );
}

/** Choose the vector store that the answer is drawn from. */
function FileSearch(props: { settings: Settings; change: (next: Partial<Settings>) => void; store: string; onStore: (store: string) => void }) {
  const { settings, change, store, onStore } = props;
  const stores = useQuery(get("/v1/vector_stores", { query: { limit: 100 } }));
  const options = (stores.data?.data ?? []).map(({ id, name }): [string, string] => [id, name || id]);
  return (
    <>
      {stores.isError && <Failure title="The vector stores could not be listed" error={stores.error} />}
      <Field label="Answer from a vector store" hint={<Link to="/vector-stores">Vector stores</Link>}>
        <Select value={store} options={[["", "none"], ...options]} onChange={onStore} />
      </Field>
      {store !== "" && (
        <>
          <Field label="Excerpts" hint="1 to 50 that the model is shown.">
            <Input type="number" min={1} max={50} value={settings.maxResults} onChange={(event) => change({ maxResults: event.target.value })} />
          </Field>
          <label className="row">
            <input type="checkbox" checked={settings.refuse} onChange={(event) => change({ refuse: event.target.checked })} />
            Refuse answers that the excerpts do not support
          </label>
        </>
      )}
    </>
  );
}

function NoModels() {
  return (
    <Empty
      title="No model answers here"
      command="nightmill models"
      sdk='client.chat.completions.create(\n    model="smollm2-135m-instruct", messages=[{"role": "user", "content": "Hello"}]\n)'
    >
      Models stand in the file models.yaml. The command shows them, and why one is not served.
    </Empty>
  );
}
