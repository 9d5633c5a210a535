"""The pool, as the server sees it: models that are served."""
