import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { api, take } from "@/api/client";
import { get } from "@/api/get";
import { Field, Input } from "@/components/Field";
import { Form } from "@/components/Form";
import { Loaded } from "@/components/Loaded";
import { Card, Page } from "@/components/Page";

import { describeSplit, sourceNamed, type Dataset } from "./datasets";
import { refreshDatasets } from "./queries";
import { SourceFields, type ChosenSource } from "./SourceFields";

const route = getRouteApi("/datasets/$datasetId/versions/new");

/** Make a version of a dataset from files, runs of evaluations, batches and splits of datasets. */
export default function NewVersion() {
  const { datasetId } = route.useParams();
  const dataset = useQuery(get("/v1/datasets/{dataset}", { path: { dataset: datasetId } }));
  return (
    <Loaded what="the dataset" query={dataset} page="New version">
      {(dataset) => <Fields dataset={dataset} />}
    </Loaded>
  );
}

function Fields({ dataset }: { dataset: Dataset }) {
  const navigate = route.useNavigate();
  const [sources, setSources] = useState<readonly ChosenSource[]>([]);
  const [deduplicate, setDeduplicate] = useState(false);
  const [commit, setCommit] = useState("");
  const [hash, setHash] = useState("");

  async function create() {
    const body = { sources: sources.map(({ id }) => sourceNamed(id)), deduplicate, git_commit: commit.trim() || undefined, dvc_hash: hash.trim() || undefined };
    const { version } = await take(api.POST("/v1/datasets/{dataset}/versions", { params: { path: { dataset: dataset.id } }, body }));
    await refreshDatasets();
    await navigate({ to: "/datasets/$datasetId", params: { datasetId: dataset.id }, search: { version } });
  }

  return (
    <Page title={`New version of ${dataset.name}`} description={`The rows of all sources, in their order. Split: ${describeSplit(dataset)}.`}>
      <Form action="Create the version" failure="The version was not created" disabled={sources.length === 0} onSubmit={create}>
        <Card>
          <SourceFields sources={sources} onChange={setSources} />
        </Card>
        <label className="row">
          <input type="checkbox" checked={deduplicate} onChange={(event) => setDeduplicate(event.target.checked)} />
          Keep only the first of equal rows
        </label>
        <details>
          <summary>Where the rows come from</summary>
          <Card>
            <div className="grid">
              <Field label="Git commit" param="git_commit" hint="Kept as it is given.">
                <Input pattern="[0-9a-f]{7,64}" value={commit} onChange={(event) => setCommit(event.target.value)} />
              </Field>
              <Field label="DVC hash" param="dvc_hash" hint="Kept as it is given.">
                <Input pattern="[0-9a-f]{32,58}(\.dir)?" value={hash} onChange={(event) => setHash(event.target.value)} />
              </Field>
            </div>
          </Card>
        </details>
      </Form>
    </Page>
  );
}
