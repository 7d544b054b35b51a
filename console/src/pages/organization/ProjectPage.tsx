import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";

import { adminApi, take } from "@/api/client";
import { getAsAdmin, refresh } from "@/api/get";
import { useSession } from "@/api/session";
import { AdminGate } from "@/components/AdminGate";
import { ConfirmButton } from "@/components/Confirm";
import { formatName } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Card, Facts, Page } from "@/components/Page";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Tabs } from "@/components/Tabs";
import { Time } from "@/components/Time";
import { BudgetPart } from "@/pages/usage/BudgetPart";

import { projectSearch } from "./address";
import { Limits } from "./Limits";
import { Members } from "./Members";
import { ProjectKeys } from "./ProjectKeys";
import type { Project } from "./projects";

const route = getRouteApi("/organization/$projectId");
const PATH = "/v1/organization/projects/{project_id}";

/** Show a project of the organization: its keys, members, limits and budget. */
export default function ProjectPage() {
  const { adminKey } = useSession();
  const { projectId: project_id } = route.useParams();
  const project = useQuery({ ...getAsAdmin(PATH, { path: { project_id } }), enabled: adminKey !== null });
  const { data } = project;
  return (
    <Page
      title={data?.name ?? "Project"}
      badge={data && <State state={data.status} />}
      actions={data?.status === "active" && data.name !== "default" && <Archival project={data} />}
    >
      <AdminGate error={project.error}>
        <Loaded what="the project" query={project}>
          {(project) => (
            <div className="stack">
              <ProjectFacts project={project} />
              <Parts project={project} />
            </div>
          )}
        </Loaded>
      </AdminGate>
    </Page>
  );
}

function ProjectFacts({ project }: { project: Project }) {
  return (
    <Card>
      <Facts
        facts={[
          ["Id", <Id key="id" id={project.id} />],
          ["Share of the workers", project.weight],
          ["Prompts to servers outside", project.allow_external ? "allowed" : "not allowed"],
          ["Pictures and files by URL", project.allow_media_urls ? "allowed" : "not allowed"],
          ["Created", <Time key="created" at={project.created_at} />],
          ["Archived", project.archived_at !== null && <Time key="archived" at={project.archived_at} />],
        ]}
      />
    </Card>
  );
}

function Parts({ project }: { project: Project }) {
  const { tab = "keys" } = route.useSearch();
  const navigate = route.useNavigate();
  return (
    <Tabs
      label="Parts of the project"
      value={tab}
      onChange={(id) => void navigate({ search: projectSearch({ tab: id }), replace: true })}
      tabs={[
        { id: "keys", title: "Keys", content: <ProjectKeys project={project} /> },
        { id: "members", title: "Members", content: <Members project={project} /> },
        { id: "limits", title: "Limits", content: <Limits project={project} /> },
        { id: "budget", title: "Budget", content: <ProjectBudget project={project} /> },
      ]}
    />
  );
}

function ProjectBudget({ project: { id: project_id, status } }: { project: Project }) {
  const budget = useQuery(getAsAdmin(`${PATH}/budget`, { path: { project_id } }));
  return (
    <Loaded what="the budget" query={budget}>
      {(budget) => <BudgetPart budget={budget} owner={project_id} isReadOnly={status === "archived"} />}
    </Loaded>
  );
}

function Archival({ project }: { project: Project }) {
  async function archive() {
    await take(adminApi.POST(`${PATH}/archive`, { params: { path: { project_id: project.id } } }));
    await refresh(PATH, "/v1/organization/projects");
  }
  return (
    <ConfirmButton label="Archive" title={`Archive ${formatName(project.name)}?`} action="Archive the project" onConfirm={archive}>
      <p>
        Its keys are refused, its schedules and sources are paused, and its jobs are cancelled with what they have. Files, stores and
        trained models stay. This cannot be undone.
      </p>
    </ConfirmButton>
  );
}
