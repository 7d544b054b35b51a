import { useSyncExternalStore } from "react";

/** The colours of the console: those of the system, or always light or dark. */
export type Theme = "system" | "light" | "dark";

const NAME = "nightmill.theme";
const listeners = new Set<() => void>();
const darkSystem = matchMedia("(prefers-color-scheme: dark)");

/** Return the theme that the reader chose. */
export function theme(): Theme {
  const stored = localStorage.getItem(NAME);
  return stored === "light" || stored === "dark" ? stored : "system";
}

/** Show the theme that the reader chose. The style sheet reads it from an attribute of the document. */
export function applyTheme(): void {
  document.documentElement.dataset.theme = theme();
}

/** Choose a theme for this browser. */
export function setTheme(chosen: Theme): void {
  localStorage.setItem(NAME, chosen);
  applyTheme();
  for (const listener of listeners) listener();
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  darkSystem.addEventListener("change", listener);
  return () => {
    listeners.delete(listener);
    darkSystem.removeEventListener("change", listener);
  };
}

/** Use the chosen theme. */
export function useTheme(): Theme {
  return useSyncExternalStore(subscribe, theme);
}

/** Use whether the page is dark now, by choice or by the system. */
export function useIsDark(): boolean {
  return useSyncExternalStore(subscribe, () => (theme() === "system" ? darkSystem.matches : theme() === "dark"));
}
