import { Link, Outlet, useRouter, useRouterState, type LinkProps } from "@tanstack/react-router";
import { useEffect, useState } from "react";

import { startFeed, useFeedState } from "@/api/feed";
import { leave, useSession } from "@/api/session";

import { Button } from "./Button";
import { Select } from "./Field";
import { KeyGate } from "./KeyGate";
import { useNavigation } from "./navigation";
import { Palette, usePalette } from "./Palette";
import { ProjectChoice } from "./ProjectChoice";
import { setTheme, useTheme, type Theme } from "./theme";

const THEMES = [
  ["system", "System theme"],
  ["light", "Light"],
  ["dark", "Dark"],
] as const;

/** Render the frame around every page: project, navigation, theme, sign out. Without a key it asks for one. */
export function Layout() {
  const { key } = useSession();
  return key === null ? <KeyGate /> : <Frame key={key} apiKey={key} />;
}

function Frame({ apiKey }: { apiKey: string }) {
  useEffect(() => startFeed(apiKey), [apiKey]);
  useFocusOfPages();
  const palette = usePalette();
  const path = useRouterState({ select: (state) => state.location.pathname });
  // The menu of narrow screens is open for the page on which it was opened.
  const [openOn, setOpenOn] = useState<string | null>(null);
  const isOpen = openOn === path;
  return (
    <div className="frame">
      <a className="skip" href="#content">
        Skip to the content
      </a>
      <header className="top">
        <Link to="/" className="brand">
          Nightmill
        </Link>
        <ProjectChoice />
        <Button tone="plain" className="menu" aria-expanded={isOpen} aria-controls="navigation" onClick={() => setOpenOn(isOpen ? null : path)}>
          {isOpen ? "Close" : "Menu"}
        </Button>
      </header>
      <nav id="navigation" aria-label="Pages" className={isOpen ? "side open" : "side"}>
        <Entries />
        <div className="side-end">
          <Button tone="plain" onClick={palette.show}>
            Go to <kbd>Ctrl K</kbd>
          </Button>
          <ThemeChoice />
          <Button tone="plain" onClick={leave}>
            Sign out
          </Button>
        </div>
      </nav>
      <main id="content" tabIndex={-1} aria-labelledby="title">
        <Away />
        <Outlet />
      </main>
      <Palette key={palette.openings} open={palette.isOpen} onClose={palette.hide} />
    </div>
  );
}

/** Move the focus to the content when another page is opened, so that keys and screen readers go on there. */
function useFocusOfPages() {
  const router = useRouter();
  useEffect(
    () =>
      router.subscribe("onRendered", ({ fromLocation, pathChanged }) => {
        if (fromLocation && pathChanged) document.getElementById("content")?.focus();
      }),
    [router],
  );
}

function Entries() {
  return (
    <div>
      {useNavigation().map(([title, entries]) => (
        <div key={title} className="nav-group">
          {title && <p>{title}</p>}
          <ul>
            {entries.map(([path, name]) => (
              <li key={path}>
                <Link to={path as LinkProps["to"]} activeOptions={{ exact: path === "/", includeSearch: false }}>
                  {name}
                </Link>
              </li>
            ))}
          </ul>
        </div>
      ))}
    </div>
  );
}

/** Say that the server is away, where it is; the feed asks again, and pages are read anew when it is back. */
function Away() {
  const isAway = useFeedState() === "away";
  return (
    <div role="status">{isAway && <p className="banner">The server cannot be reached. What you see may be old. Trying again …</p>}</div>
  );
}

function ThemeChoice() {
  const theme = useTheme();
  return <Select aria-label="Theme" value={theme} onChange={(chosen) => setTheme(chosen as Theme)} options={THEMES} />;
}
