import { useEffect, useRef, useState } from "react";

import { request } from "@/api/client";
import { readChunks } from "@/api/sse";

import { addChatChunk, addResponseEvent, EMPTY_ANSWER, type Answer } from "./answer";
import { bodyOf, pathOf, streamed, type Body, type Message, type Protocol, type Settings } from "./requests";

/** Milliseconds between two renderings of an answer that comes. */
const RENDERING = 80;

/** A question to a model with its answer. */
export interface Turn {
  readonly question: string;
  readonly body: Body;
  readonly protocol: Protocol;
  /** The vector store that the answer cites. */
  readonly store: string;
  readonly answer: Answer;
  readonly state: "streaming" | "done" | "stopped" | "failed";
  readonly error: Error | null;
  /** Seconds until the first text, and until the end. */
  readonly firstAfter: number | null;
  readonly seconds: number | null;
}

/** A question as it is sent. */
type Asked = Pick<Turn, "question" | "protocol" | "body" | "store">;

/** A conversation with one model. */
export interface Conversation {
  readonly turns: readonly Turn[];
  readonly isStreaming: boolean;
  /** Ask with all earlier questions and answers. */
  readonly ask: (question: string, protocol: Protocol, model: string, settings: Settings) => Promise<void>;
  /** Send a request as it is; its answer stands below the earlier ones. */
  readonly send: (asked: Asked) => Promise<void>;
  readonly stop: () => void;
  readonly clear: () => void;
}

/** Return what the model is shown of earlier turns. Those that failed are left out. */
function historyOf(turns: readonly Turn[]): Message[] {
  return turns
    .filter((turn) => turn.state !== "failed" && turn.answer.text !== "")
    .flatMap((turn) => [
      { role: "user", content: turn.question } as const,
      { role: "assistant", content: turn.answer.text } as const,
    ]);
}

/** Hold a conversation with one model. Its request is ended when the page is left. */
export function useConversation(): Conversation {
  const [turns, setTurns] = useState<readonly Turn[]>([]);
  const running = useRef<AbortController | null>(null);
  useEffect(() => () => running.current?.abort(), []);

  function ask(question: string, protocol: Protocol, model: string, settings: Settings) {
    const body = bodyOf(protocol, model, settings, [...historyOf(turns), { role: "user", content: question }]);
    return send({ question, protocol, body, store: settings.store });
  }

  async function send(asked: Asked) {
    running.current?.abort();
    const controller = new AbortController();
    running.current = controller;
    const before = turns.filter((turn) => turn.state !== "failed");
    await follow(asked, controller.signal, (turn) => {
      // A conversation that was cleared meanwhile does not come back.
      if (running.current === controller) setTurns([...before, turn]);
    });
  }

  function stop() {
    running.current?.abort();
  }

  function clear() {
    running.current?.abort();
    running.current = null;
    setTurns([]);
  }

  return { turns, isStreaming: turns.at(-1)?.state === "streaming", ask, send, stop, clear };
}

/** Send a request, and show its turn every `RENDERING` milliseconds while the answer comes. */
async function follow(asked: Asked, signal: AbortSignal, show: (turn: Turn) => void): Promise<void> {
  const { protocol, body } = asked;
  const began = performance.now();
  let turn: Turn = { ...asked, answer: EMPTY_ANSWER, state: "streaming", error: null, firstAfter: null, seconds: null };
  let shown: Turn | null = null;
  function render() {
    if (turn !== shown) show(turn);
    shown = turn;
  }
  render();
  const timer = setInterval(render, RENDERING);
  const add = protocol === "chat" ? addChatChunk : addResponseEvent;
  try {
    for await (const event of open(protocol, body, signal)) {
      const answer = add(turn.answer, event);
      turn = { ...turn, answer, firstAfter: turn.firstAfter ?? (answer.text ? elapsed(began) : null) };
    }
    turn = { ...turn, state: "done" };
  } catch (error) {
    turn = signal.aborted ? { ...turn, state: "stopped" } : { ...turn, state: "failed", error: error as Error };
  } finally {
    clearInterval(timer);
  }
  show({ ...turn, seconds: elapsed(began) });
}

async function* open(protocol: Protocol, body: Body, signal: AbortSignal): AsyncGenerator<unknown> {
  const answer = await request(pathOf(protocol), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(streamed(protocol, body)),
    signal,
  });
  yield* readChunks(answer.body!);
}

function elapsed(since: number): number {
  return (performance.now() - since) / 1_000;
}
