-- The names of jobs/store/keys.py that steps know by themselves: no caller passes them.
return {
  answers = 'promptmill:answers:',
  batch = 'promptmill:b:',
  keeping = 'promptmill:keeping',
  nudge = 'promptmill:nudge:',
  webhooks = 'promptmill:webhooks',
}
