import { fileURLToPath } from "node:url";

import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

import { compress } from "./compress.ts";
import openapi from "./openapi.json" with { type: "json" };
import type { Kind } from "./src/api/kinds.ts";

/** The API that `npm run dev` sends its requests to. */
const API = process.env.NIGHTMILL_URL ?? "http://127.0.0.1:8000";

/** Of the document, the bundle has nothing else. */
const kinds: readonly Kind[] = openapi["x-kinds"];

export default defineConfig({
  base: "/console/",
  define: { __KINDS__: JSON.stringify(kinds) },
  plugins: [react(), compress({ limit: 350_000 })],
  resolve: { alias: { "@": fileURLToPath(new URL("src", import.meta.url)) } },
  build: {
    outDir: "../api/pages/console",
    emptyOutDir: true,
    target: "es2023",
    // A data URL of a script or a style would break the content security policy.
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  server: { proxy: { "/v1": API, "/console/session": API } },
  // A machine that does other work stands still for seconds: no test judges time.
  test: { environment: "jsdom", include: ["tests/**/*.test.{ts,tsx}"], setupFiles: ["tests/setup.ts"], testTimeout: 60_000, restoreMocks: true },
});
