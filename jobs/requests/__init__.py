"""What several rooms know about requests: endpoints, fields, prompts, roles."""
