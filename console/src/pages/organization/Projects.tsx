import { getRouteApi } from "@tanstack/react-router";
import { useState, type ComponentProps } from "react";

import { adminApi, take } from "@/api/client";
import { refresh } from "@/api/get";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Field, Input } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { formatName } from "@/components/format";
import { Listed } from "@/components/Listed";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { organizationSearch } from "./address";
import type { Project } from "./projects";

const route = getRouteApi("/organization");

const COLUMNS: readonly Column<Project>[] = [
  { id: "name", header: "Project", cell: (row) => <span className="break">{formatName(row.name)}</span>, sort: (row) => row.name },
  { id: "state", header: "State", cell: (row) => <State state={row.status} />, sort: (row) => row.status },
  { id: "id", header: "Id", cell: (row) => <code>{row.id}</code>, wide: true },
  { id: "weight", header: "Share", cell: (row) => row.weight, sort: (row) => row.weight, align: "end", wide: true },
  { id: "created", header: "Created", cell: (row) => <Time at={row.created_at} />, sort: (row) => row.created_at, align: "end" },
];

const SDK = `project = client.admin.organization.projects.create(name="reports")`;

interface ProjectsProps {
  /** A query of `usePages`. */
  projects: Omit<ComponentProps<typeof Listed>["query"], "rows"> & { rows: readonly Project[] };
}

/** List the projects, and create one. */
export function Projects({ projects }: ProjectsProps) {
  const { archived } = route.useSearch();
  const navigate = route.useNavigate();
  const [isOpen, setOpen] = useState(false);
  const showArchived = (checked: boolean) => void navigate({ search: organizationSearch({ archived: checked }), replace: true });
  return (
    <div className="stack">
      <div className="actions">
        <Button onClick={() => setOpen(true)}>New project</Button>
        <label className="row">
          <input type="checkbox" checked={archived === true} onChange={(event) => showArchived(event.target.checked)} />
          Archived projects, too
        </label>
      </div>
      <Listed
        what="the projects"
        query={projects}
        empty={
          <Empty title="No projects" command="nightmill projects create reports" sdk={SDK}>
            A project has keys, members, limits and a budget of its own, and sees nothing of others.
          </Empty>
        }
      >
        <Table
          label="Projects"
          columns={COLUMNS}
          rows={projects.rows}
          rowKey={(row) => row.id}
          rowLink={(row) => ({ to: "/organization/$projectId", params: { projectId: row.id } })}
        />
      </Listed>
      {isOpen && <NewProject onClose={() => setOpen(false)} />}
    </div>
  );
}

function NewProject({ onClose }: { onClose: () => void }) {
  const [name, setName] = useState("");
  async function create() {
    await take(adminApi.POST("/v1/organization/projects", { body: { name } }));
    await refresh("/v1/organization/projects");
  }
  return (
    <FormDialog title="New project" action="Create the project" failure="The project was not created" onSubmit={create} onClose={onClose}>
      <Field label="Name" hint="Two projects that are not archived have different names." param="name">
        <Input required maxLength={255} value={name} onChange={(event) => setName(event.target.value)} />
      </Field>
    </FormDialog>
  );
}
