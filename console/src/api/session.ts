import { useSyncExternalStore } from "react";

/** The two keys that a tab may hold. An operator's key opens no project, and a project's key steers no deployment. */
interface Session {
  /** The key of a project; without one the console asks for it. */
  readonly key: string | null;
  /** The operator's key, for pages that show the whole deployment. */
  readonly operatorKey: string | null;
  /** The reason that the server gave when it refused the project's key. */
  readonly refusal: string | null;
}

const KEY = "nightmill.key";
const OPERATOR_KEY = "nightmill.operator_key";
const listeners = new Set<() => void>();

let session: Session = {
  key: sessionStorage.getItem(KEY),
  operatorKey: sessionStorage.getItem(OPERATOR_KEY),
  refusal: null,
};

function change(next: Partial<Session>): void {
  session = { ...session, ...next };
  store(KEY, session.key);
  store(OPERATOR_KEY, session.operatorKey);
  for (const listener of listeners) listener();
}

function store(name: string, value: string | null): void {
  if (value === null) sessionStorage.removeItem(name);
  else sessionStorage.setItem(name, value);
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Return the session as it is now. */
export function currentSession(): Session {
  return session;
}

/** Use the session; the component is rendered again when it changes. */
export function useSession(): Session {
  return useSyncExternalStore(subscribe, currentSession);
}

/** Keep the key of a project in this tab. */
export function signIn(key: string): void {
  change({ key, refusal: null });
}

/** Keep the operator's key in this tab, or forget it. */
export function setOperatorKey(operatorKey: string | null): void {
  change({ operatorKey });
}

/** Forget both keys. `refusal` says why, where the server refused the key. */
export function signOut(refusal: string | null = null): void {
  change({ key: null, operatorKey: null, refusal });
}

/** Call `listener` after each change of the session. Returns a function that ends this. */
export function onSessionChange(listener: () => void): () => void {
  return subscribe(listener);
}

/**
 * Sign in by the one-time token in the address's fragment, if there is one, and remove it from the address.
 *
 * A token that is spent or has expired leaves the session as it is; the key page shows the reason.
 */
export async function redeemToken(): Promise<void> {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return;
  history.replaceState(null, "", location.pathname + location.search);
  const answer = await fetch("/console/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  }).catch(() => null);
  const body = (await answer?.json().catch(() => null)) as { api_key?: string; error?: { message: string } } | null;
  if (body?.api_key !== undefined) signIn(body.api_key);
  else if (session.key === null) change({ refusal: body?.error?.message ?? "The server cannot be reached." });
}
