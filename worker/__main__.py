"""``python -m worker``: what ``promptmill worker`` becomes."""

import sys

try:
    from promptmill.packages import exit_unless_ours

    exit_unless_ours()
    import logging
    import os
    import threading

    from worker.cli import main
    from worker.health.recycle import RECYCLE, listen, start_afresh
    from worker.models.compute import THREAD_NAME
except KeyboardInterrupt:  # these take half a second, in which somebody may change their mind
    sys.exit(130)

if __name__ == "__main__":
    try:
        listen()
        status = main()
        if status == RECYCLE:
            status = start_afresh()
    except SystemExit as end:  # by SIGTERM, before anything was taken or after all of it was handed back
        status = end.code if isinstance(end.code, int) else 1
    if any(thread.name == THREAD_NAME for thread in threading.enumerate()):
        # MLX is still at work, loading a model: if the interpreter went down under it, the process would abort.
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
