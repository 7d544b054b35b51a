"""Evaluations: graders, their templates and scores.

definition ─▶ graders (checked) ─▶ grading.requests_of ─▶ judges' answers ─▶ grading.grade ─▶ Grade
                                        templates, samples, text_metrics, formulas
"""
