"""Properties of requests that several rooms need: endpoints, fields, prompts, roles, times."""
