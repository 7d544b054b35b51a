"""The estimates of tokens, where budgets import them from."""

from jobs.requests.token_estimates import input_tokens, output_tokens

__all__ = ["input_tokens", "output_tokens"]
