"""Schedules: rows that submit a job at the times of a cron expression."""
