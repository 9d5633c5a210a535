"""The flags of all commands, by name: what may stand at the top of a settings file, where no command is named."""

from __future__ import annotations

from jobs.params import ALIASES, PARAMETERS

__all__ = ["FLAGS"]

_OTHERS = """
adapter-path allow-overlap allow-sleep at autotune bind burst ca catch-up chat-template-config config
continue-final-message control-tokens cron decode-concurrency defaults draft-model drain dry-run errors expires-in
follow format from-spool hf-home home host in init install json keep keep-cut kv-bits kv-group-size label list
load-patience log-file log-format max-attempts max-context max-idle-time max-kv-size maxmemory memory-limit metadata
metrics-host metrics-port model name new-passwords no-start num-draft-tokens older-than on-bad-line output
override-model port power prefill-response prefill-step-size prefix-memory preload priority program prompt-concurrency
quantized-kv-start read-at-fire read-from recycle-after-tokens redis redis-file replace restart revision root spool
spool-keep system-prompt timeout tls trust-remote-code tz uninstall user verbose wait watch webhook webhook-hosts
webhook-secret webhook-secret-file wired-limit worker
"""

FLAGS = frozenset(_OTHERS.split()) | {name.replace("_", "-") for name in (*PARAMETERS, *ALIASES)}
"""Written down, because no command knows the flags of the others without importing them; a test compares."""
