import { Link, Outlet, useRouter, useRouterState, type LinkProps } from "@tanstack/react-router";
import { useState } from "react";

import { signOut, useSession } from "@/api/session";

import { Button } from "./Button";
import { Select } from "./Field";
import { KeyGate } from "./KeyGate";
import { setTheme, useTheme, type Theme } from "./theme";

/** The navigation. An entry appears when the router has its page. */
const GROUPS: readonly (readonly [title: string, entries: readonly (readonly [path: string, name: string])[]])[] = [
  ["", [["/", "Overview"]]],
  [
    "Work",
    [
      ["/jobs", "Jobs"],
      ["/batches/new", "New batch"],
      ["/files", "Files"],
      ["/vector-stores", "Vector stores"],
      ["/playground", "Playground"],
    ],
  ],
  [
    "Models",
    [
      ["/models", "Models"],
      ["/fine-tuning", "Fine-tuning"],
      ["/evals", "Evaluations"],
    ],
  ],
  [
    "Operation",
    [
      ["/webhooks", "Webhooks"],
      ["/schedules", "Schedules"],
      ["/workers", "Workers"],
      ["/keys", "Keys"],
      ["/audit", "Audit"],
    ],
  ],
];

const THEMES = [
  ["system", "System theme"],
  ["light", "Light"],
  ["dark", "Dark"],
] as const;

/** Render the frame around every page: navigation, theme, sign out. Without a key it asks for one. */
export function Layout() {
  const { key } = useSession();
  return key === null ? <KeyGate /> : <Frame />;
}

function Frame() {
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
        <Button tone="plain" className="menu" aria-expanded={isOpen} aria-controls="navigation" onClick={() => setOpenOn(isOpen ? null : path)}>
          {isOpen ? "Close" : "Menu"}
        </Button>
      </header>
      <nav id="navigation" aria-label="Pages" className={isOpen ? "side open" : "side"}>
        <Entries />
        <div className="side-end">
          <ThemeChoice />
          <Button tone="plain" onClick={() => signOut()}>
            Sign out
          </Button>
        </div>
      </nav>
      <main id="content" tabIndex={-1}>
        <Outlet />
      </main>
    </div>
  );
}

function Entries() {
  const router = useRouter();
  const pages: Readonly<Record<string, unknown>> = router.routesByPath;
  return (
    <div>
      {GROUPS.map(([title, entries]) => {
        const shown = entries.filter(([path]) => path in pages);
        if (shown.length === 0) return null;
        return (
          <div key={title} className="nav-group">
            {title && <p>{title}</p>}
            <ul>
              {shown.map(([path, name]) => (
                <li key={path}>
                  <Link to={path as LinkProps["to"]} activeOptions={{ exact: path === "/", includeSearch: false }}>
                    {name}
                  </Link>
                </li>
              ))}
            </ul>
          </div>
        );
      })}
    </div>
  );
}

function ThemeChoice() {
  const theme = useTheme();
  return <Select aria-label="Theme" value={theme} onChange={(chosen) => setTheme(chosen as Theme)} options={THEMES} />;
}
