// The OpenAPI document of this server, drawn by Swagger UI. A key that is typed in is forgotten with the page.
"use strict";

window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#reference",
  deepLinking: true, // a link to an operation can be copied
  docExpansion: "list",
  defaultModelsExpandDepth: -1,
  filter: true,
});
