"""One module per ``promptmill`` command; each defines ``command``, imported only when it is called."""
