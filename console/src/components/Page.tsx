import { useEffect, type ReactNode } from "react";

import { formatName } from "./format";

interface PageProps {
  /** The heading, also the title of the browser's tab. */
  title: string;
  /** What stands beside the heading, such as a badge. */
  badge?: ReactNode;
  /** One sentence below the heading. */
  description?: ReactNode;
  /** Buttons and links at the right of the heading. */
  actions?: ReactNode;
  children: ReactNode;
}

/** Render a page with its heading, and name the browser's tab after it. */
export function Page({ title, badge, description, actions, children }: PageProps) {
  const named = formatName(title);
  useEffect(() => {
    document.title = `${named} · Nightmill`;
  }, [named]);
  return (
    <>
      <header className="page-head">
        <div className="page-title">
          <h1 id="title">{named}</h1>
          {badge && <span aria-live="polite">{badge}</span>}
        </div>
        {actions && <div className="actions">{actions}</div>}
        {description && <p className="page-description">{description}</p>}
      </header>
      {children}
    </>
  );
}

/** Render a part of a page with a heading of its own. */
export function Section({ title, actions, children }: { title: string; actions?: ReactNode; children: ReactNode }) {
  return (
    <section className="section" aria-label={title}>
      <header className="section-head">
        <h2>{title}</h2>
        {actions && <div className="actions">{actions}</div>}
      </header>
      {children}
    </section>
  );
}

/** Render a bordered box. */
export function Card({ children, className = "" }: { children: ReactNode; className?: string }) {
  return <div className={`card ${className}`}>{children}</div>;
}

/** Render facts as pairs of a name and a value; facts without a value are left out. */
export function Facts({ facts }: { facts: readonly (readonly [name: string, value: ReactNode])[] }) {
  return (
    <dl className="facts">
      {facts
        .filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}
