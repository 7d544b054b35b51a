import { useSession } from "@/api/session";
import { Page } from "@/components/Page";

import { CurrentJobs } from "./CurrentJobs";
import { Models, Workers } from "./Serving";
import { Traffic } from "./Traffic";

/** Show what runs, what waits and why, and what the last day brought. */
export default function Overview() {
  const { adminKey } = useSession();
  return (
    <Page title="Overview">
      <Traffic />
      <CurrentJobs />
      <Models />
      {adminKey !== null && <Workers />}
    </Page>
  );
}
