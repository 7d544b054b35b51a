import { useQueries } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useState } from "react";

import { readProject } from "@/api/project";
import { signIn, useSession } from "@/api/session";

import { Dialog } from "./Dialog";
import { Select } from "./Field";
import { formatName } from "./format";
import { KeyForm } from "./KeyGate";

const ANOTHER = "another";

/** Show the name of the project, and switch between the projects whose keys the tab has, or to that of another key. */
export function ProjectChoice() {
  const { key, keys } = useSession();
  const [isAsking, setAsking] = useState(false);
  const navigate = useNavigate();
  const projects = useQueries({
    queries: keys.map((each) => ({
      queryKey: ["/v1/project", each],
      queryFn: ({ signal }: { signal: AbortSignal }) => readProject(each, signal),
      staleTime: Infinity,
      retry: false,
    })),
  });
  // A choice is named by its number, since a key has no place in the page. A key that was revoked is none.
  const choices = keys.map((_, n): [string, string] => [String(n), formatName(projects[n]?.data?.name ?? "Project")]);
  const options = choices.filter((_, n) => keys[n] === key || !projects[n]?.isError);

  function choose(chosen: string) {
    if (chosen === ANOTHER) {
      setAsking(true);
      return;
    }
    signIn(keys[Number(chosen)]!);
    leave();
  }

  /** Go to the overview: the object of this page may belong to the project that was left. */
  function leave() {
    setAsking(false);
    void navigate({ to: "/" });
  }

  return (
    <>
      <Select
        aria-label="Project"
        className="input project"
        value={String(keys.indexOf(key!))}
        onChange={choose}
        options={[...options, [ANOTHER, "Another project …"]]}
      />
      <Dialog title="Open another project" open={isAsking} onClose={() => setAsking(false)}>
        <KeyForm onDone={leave} />
      </Dialog>
    </>
  );
}
