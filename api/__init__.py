"""Intake: validate, one transaction, answer. What happens after the answer is `workers`'."""
