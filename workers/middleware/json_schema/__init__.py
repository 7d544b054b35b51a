"""Answers in JSON of a schema: looked at when they are finished, asked for once more, and then failed with a code.

    request ──▶ checked.Checked ──▶ engine ──▶ answer ──▶ checker ══pipe══▶ child: jsonschema
                    ▲      schema is none: 400               │ not of the schema
                    └────── what was wrong, once ────────────┘ then: invalid_json_schema_output

vLLM holds its answers to the schema while it writes them. Servers may, or may take no notice of it.
"""
