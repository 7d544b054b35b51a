import { useQuery } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";

import { get } from "@/api/get";
import { Button } from "@/components/Button";
import { Dialog } from "@/components/Dialog";
import { Failure } from "@/components/Failure";
import { formatCount, formatDuration, formatName, formatRate, formatShare } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Copy } from "@/components/Snippet";

import { excerptOf, type Citation } from "./answer";
import type { Conversation, Turn } from "./conversation";
import { targetOf } from "./feedback";
import { Rating } from "./Rating";
import { asCurl, asPython } from "./requests";

/** Characters of an answer that are shown: a browser lays out no more of them without a pause. */
const SHOWN = 50_000;
/** Pixels from the end within which the reader counts as one who reads the end. */
const NEAR_END = 80;

interface LaneProps {
  model: string;
  conversation: Conversation;
  /** What stands there before the first question. */
  empty?: string;
  onRetry: (question: string) => void;
}

/** Show a conversation with one model. It follows the answer that comes unless the reader has scrolled up. */
export function Lane({ model, conversation, empty = "Ask something below.", onRetry }: LaneProps) {
  const box = useRef<HTMLDivElement>(null);
  const isAtEnd = useRef(true);
  const { turns, isStreaming } = conversation;
  useEffect(() => {
    if (isAtEnd.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [turns]);
  return (
    <section className="lane" aria-label={`Answers of ${model}`}>
      <h2 className="break">{model}</h2>
      <div
        ref={box}
        className="turns"
        role="log"
        // eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex -- a long conversation is scrolled by keyboard
        tabIndex={0}
        aria-label={`Conversation with ${model}`}
        aria-busy={isStreaming}
        onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
          isAtEnd.current = scrollHeight - scrollTop - clientHeight < NEAR_END;
        }}
      >
        {turns.length === 0 && <p className="muted">{empty}</p>}
        {turns.map((turn, index) => (
          <TurnView key={index} turn={turn} onRetry={() => onRetry(turn.question)} />
        ))}
      </div>
    </section>
  );
}

function TurnView({ turn, onRetry }: { turn: Turn; onRetry: () => void }) {
  const { answer, state } = turn;
  const target = targetOf(turn);
  return (
    <article className="turn">
      <p className="question" dir="auto">
        {turn.question}
      </p>
      <AnswerText text={answer.text} isStreaming={state === "streaming"} />
      {answer.isRefusal && <p className="muted small">The model refused.</p>}
      {answer.citations.length > 0 && <Citations citations={answer.citations} store={turn.store} />}
      {turn.error && <Failure title="There is no whole answer" error={turn.error} onRetry={onRetry} />}
      {(answer.finish === "length" || answer.finish === "max_output_tokens") && (
        <p className="muted small">The answer was cut off at the token limit. Raise “Longest answer” for a longer one.</p>
      )}
      {state !== "streaming" && <TurnFacts turn={turn} />}
      {target && <Rating key={answer.id} target={target} />}
    </article>
  );
}

/** Show the text of a model as text, and of a very long one only a part. */
function AnswerText({ text, isStreaming }: { text: string; isStreaming: boolean }) {
  const isCut = text.length > SHOWN;
  const shown = !isCut ? text : isStreaming ? text.slice(-SHOWN) : text.slice(0, SHOWN);
  return (
    <>
      {isCut && (
        <p className="muted small">
          The {isStreaming ? "last" : "first"} {formatCount(SHOWN, "character")} of {formatCount(text.length, "character")}. “Copy the answer” copies all.
        </p>
      )}
      <p className="answer" dir="auto">
        {shown || (isStreaming ? "…" : "")}
      </p>
    </>
  );
}

function TurnFacts({ turn }: { turn: Turn }) {
  const { answer, seconds, firstAfter } = turn;
  const facts = [
    turn.state === "stopped" && "stopped",
    answer.outputTokens !== null && `${formatCount(answer.inputTokens ?? 0, "token")} in, ${formatCount(answer.outputTokens, "token")} out`,
    firstAfter !== null && `first text after ${formatDuration(firstAfter)}`,
    seconds !== null && `${formatDuration(seconds)} in all`,
    answer.outputTokens !== null && seconds && formatRate(answer.outputTokens / seconds, "tokens"),
  ];
  return (
    <div className="turn-facts">
      <span className="muted small">{facts.filter(Boolean).join(" · ")}</span>
      <span className="actions">
        {answer.text && <Copy text={answer.text} label="Copy the answer" />}
        <Copy text={asPython(location.origin, turn.protocol, turn.body)} label="Copy as Python" />
        <Copy text={asCurl(location.origin, turn.protocol, turn.body)} label="Copy as curl" />
      </span>
    </div>
  );
}

function Citations({ citations, store }: { citations: readonly Citation[]; store: string }) {
  const [opened, setOpened] = useState<Citation | null>(null);
  return (
    <>
      <ul className="citations" aria-label="Citations">
        {citations.map((citation, index) => (
          <li key={index}>
            <Button className="copy" onClick={() => setOpened(citation)}>
              {index + 1} · {formatName(citation.filename)}
              {citation.support !== null && <span className="muted">{formatShare(citation.support)} of the words</span>}
            </Button>
          </li>
        ))}
      </ul>
      <Dialog title={opened?.filename ?? "Citation"} open={opened !== null} onClose={() => setOpened(null)} className="wide-dialog">
        {opened && <Cited citation={opened} store={store} />}
      </Dialog>
    </>
  );
}

/** Show the part of a file that a citation names, with the text around it. */
function Cited({ citation, store }: { citation: Citation; store: string }) {
  const path = { vector_store_id: store, file_id: citation.file_id };
  const content = useQuery({
    ...get("/v1/vector_stores/{vector_store_id}/files/{file_id}/content", { path }),
    staleTime: 60_000,
  });
  return (
    <Loaded what="the file" query={content}>
      {({ data }) => <Excerpt text={data.map((part) => part.text).join("\n")} citation={citation} />}
    </Loaded>
  );
}

function Excerpt({ text, citation }: { text: string; citation: Citation }) {
  const excerpt = excerptOf(text, citation.start ?? 0, citation.end ?? 0);
  return (
    <p className="excerpt" dir="auto">
      <span className="muted">{excerpt.before}</span>
      <mark>{excerpt.text}</mark>
      <span className="muted">{excerpt.after}</span>
    </p>
  );
}
