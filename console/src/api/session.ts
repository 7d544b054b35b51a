import { useSyncExternalStore } from "react";

/** The keys that a tab may hold. An admin key opens no project, and a project's key steers no deployment. */
interface Session {
  /** The key of the project that is shown; without one the console asks for it. */
  readonly key: string | null;
  /** The keys of all projects that the tab can switch between, in the order in which they were given. */
  readonly keys: readonly string[];
  /** The admin key, for pages that show the whole deployment. */
  readonly adminKey: string | null;
  /** The reason that the server gave when it refused the project's key. */
  readonly refusal: string | null;
}

/** The answer to a token: the key of the first project, and of a login the keys of all its projects. */
interface BrowserSession {
  readonly api_key?: string | null;
  readonly api_keys?: readonly string[];
  readonly admin_key?: string | null;
}

const KEY = "nightmill.key";
const KEYS = "nightmill.keys";
const ADMIN_KEY = "nightmill.admin_key";
const listeners = new Set<() => void>();

let session: Session = {
  key: sessionStorage.getItem(KEY),
  keys: readKeys(),
  adminKey: sessionStorage.getItem(ADMIN_KEY),
  refusal: null,
};

/** Read the stored keys. The key of the project that is shown is always one of them. */
function readKeys(): string[] {
  const key = sessionStorage.getItem(KEY);
  const stored = sessionStorage.getItem(KEYS);
  return withKey(stored === null ? [] : (JSON.parse(stored) as string[]), key);
}

function withKey(keys: readonly string[], key: string | null): string[] {
  return key === null || keys.includes(key) ? [...keys] : [...keys, key];
}

function change(next: Partial<Session>): void {
  session = { ...session, ...next };
  store(KEY, session.key);
  store(KEYS, session.keys.length > 1 ? JSON.stringify(session.keys) : null);
  store(ADMIN_KEY, session.adminKey);
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

/** Show the project of a key, and keep the key in this tab. */
export function signIn(key: string): void {
  change({ key, keys: withKey(session.keys, key), refusal: null });
}

/** Keep the admin key in this tab, or forget it. */
export function setAdminKey(adminKey: string | null): void {
  change({ adminKey });
}

/** Show the first project of a login, and keep its keys in this tab. */
function keepLogin({ api_key = null, api_keys = [], admin_key = null }: BrowserSession): void {
  change({ key: api_key, keys: withKey(api_keys, api_key), adminKey: admin_key ?? session.adminKey, refusal: null });
}

/** Sign out by the person's own choice: forget all keys, and revoke those of a login. The server keeps other keys. */
export function leave(): void {
  const key = session.key ?? session.adminKey;
  if (key !== null) void fetch("/logout", { method: "POST", headers: { Authorization: `Bearer ${key}` } }).catch(() => null);
  signOut();
}

/** Forget all keys. `refusal` says why, where the server refused the key. */
export function signOut(refusal: string | null = null): void {
  change({ key: null, keys: [], adminKey: null, refusal });
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
  const body = (await answer?.json().catch(() => null)) as (BrowserSession & { error?: { message: string } }) | null;
  if (body?.api_key !== undefined) keepLogin(body);
  else if (session.key === null) change({ refusal: body?.error?.message ?? "The server cannot be reached." });
}
