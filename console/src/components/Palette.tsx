import { useRouter, type NavigateOptions } from "@tanstack/react-router";
import { useEffect, useState, type KeyboardEvent } from "react";

import { Dialog } from "./Dialog";
import { Input } from "./Field";
import { useNavigation } from "./navigation";
import { pageOf } from "./objects";
import { setTheme } from "./theme";

/** A command of the palette. */
interface Command {
  name: string;
  group: string;
  run: () => void;
}

/** Use the palette: Ctrl-K, or Command-K on a Mac, opens and closes it. */
export function usePalette() {
  const [openings, setOpenings] = useState(0);
  const [isOpen, setOpen] = useState(false);
  useEffect(() => {
    const onKey = (event: globalThis.KeyboardEvent) => {
      if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      setOpenings((count) => count + 1);
      setOpen((open) => !open);
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  return {
    isOpen,
    /** Changes whenever the palette is opened, so that each opening begins with an empty input. */
    openings,
    show: () => {
      setOpenings((count) => count + 1);
      setOpen(true);
    },
    hide: () => setOpen(false),
  };
}

/** Find a page, or open an object by its id, by keyboard. */
export function Palette({ open, onClose }: { open: boolean; onClose: () => void }) {
  const [text, setText] = useState("");
  const [chosen, setChosen] = useState(0);
  const commands = useCommands(text.trim());
  const index = Math.min(chosen, commands.length - 1);

  function run(command: Command | undefined) {
    if (!command) return;
    onClose();
    command.run();
  }

  function onKeyDown(event: KeyboardEvent) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) setChosen((index + step + commands.length) % Math.max(commands.length, 1));
    else if (event.key === "Enter") run(commands[index]);
    else return;
    event.preventDefault();
  }

  return (
    <Dialog title="Go to" open={open} onClose={onClose} className="palette">
      <Input
        role="combobox"
        aria-label="Page, or id of a job, file or other object"
        aria-expanded
        aria-controls="palette"
        aria-activedescendant={index >= 0 ? `palette-${index}` : undefined}
        placeholder="Page, or id of a job, file or other object"
        value={text}
        onChange={(event) => {
          setText(event.target.value);
          setChosen(0);
        }}
        onKeyDown={onKeyDown}
      />
      <ul id="palette" role="listbox" aria-label="Commands">
        {commands.map((command, at) => (
          // eslint-disable-next-line jsx-a11y/click-events-have-key-events -- the input above takes the keys
          <li key={command.name} id={`palette-${at}`} role="option" aria-selected={at === index} onClick={() => run(command)}>
            <span>{command.name}</span>
            <span className="muted small">{command.group}</span>
          </li>
        ))}
      </ul>
      {commands.length === 0 && <p className="muted">Nothing has this name.</p>}
    </Dialog>
  );
}

/** Return the commands that match a text: each of its words begins a word of the name. */
function useCommands(text: string): Command[] {
  const router = useRouter();
  const go = (options: NavigateOptions) => () => void router.navigate(options);
  const pages = useNavigation().flatMap(([group, entries]) =>
    entries.map(([path, name]): Command => ({ name, group, run: go({ to: path as "/" }) })),
  );
  const themes = (["light", "dark", "system"] as const).map(
    (theme): Command => ({ name: `Theme: ${theme}`, group: "Look", run: () => setTheme(theme) }),
  );
  const page = pageOf(text);
  const objects: Command[] = page ? [{ name: `Open ${page.name} ${text}`, group: "", run: go(page.link as NavigateOptions) }] : [];
  const parts = text.toLowerCase().split(/\s+/);
  const named = [...pages, ...themes].filter(({ name }) => {
    const spoken = name.toLowerCase().split(/[\s-]+/);
    return parts.every((part) => spoken.some((word) => word.startsWith(part)));
  });
  return [...objects, ...named];
}
