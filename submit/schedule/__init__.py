"""Schedules: batches submitted again and again by cron, and the process that dispatches them."""
