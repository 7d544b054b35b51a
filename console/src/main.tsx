import { QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

import { queries } from "@/api/client";
import { onSessionChange, redeemToken } from "@/api/session";
import { applyTheme } from "@/components/theme";
import { router } from "@/router";

import "./styles.css";

applyTheme();
// What one key may see is not for the next one.
onSessionChange(() => queries.clear());
await redeemToken();
// A link that is opened in this tab while the console is shown changes the fragment alone.
addEventListener("hashchange", () => void redeemToken());

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <QueryClientProvider client={queries}>
      <RouterProvider router={router} />
    </QueryClientProvider>
  </StrictMode>,
);
