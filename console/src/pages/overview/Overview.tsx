import { useQuery } from "@tanstack/react-query";

import { api, take } from "@/api/client";
import { Chart } from "@/components/Chart";
import { Failure } from "@/components/Failure";
import { Loading } from "@/components/Loading";
import { Card, Page } from "@/components/Page";

/** Show what the project's jobs have done in the last day. */
export default function Overview() {
  const query = { seconds: 86_400, step: 300 };
  const throughput = useQuery({
    queryKey: ["/v1/throughput", query],
    queryFn: ({ signal }) => take(api.GET("/v1/throughput", { params: { query }, signal })),
    refetchInterval: 30_000,
  });
  return (
    <Page title="Overview">
      {throughput.isPending && <Loading what="the overview" />}
      {throughput.isError && <Failure title="The throughput could not be read" error={throughput.error} onRetry={() => void throughput.refetch()} />}
      {throughput.data && (
        <Card>
          <Chart
            title="Lines in the last 24 hours"
            x={throughput.data.data.map((bucket) => bucket.start_time)}
            series={[
              { label: "answered", values: throughput.data.data.map((bucket) => bucket.lines) },
              { label: "failed", colour: "--bad", values: throughput.data.data.map((bucket) => bucket.failed) },
            ]}
          />
        </Card>
      )}
    </Page>
  );
}
