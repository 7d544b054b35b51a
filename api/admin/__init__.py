"""The organization, with the fields of OpenAI's admin API: all routes take an admin key."""
