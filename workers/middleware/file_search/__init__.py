"""Responses that search files: the tool, what is shown to the model, citations."""
