-- The names of jobs/store/keys.py that steps know by themselves: no caller passes them.
return {
  batch = 'promptmill:b:',
  keeping = 'promptmill:keeping',
  webhooks = 'promptmill:webhooks',
}
