"""Commands that read prompts: check, run, schedule, submit."""
