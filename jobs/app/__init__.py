"""What both command lines need: settings, logs, units, the name of a process, stop signals."""
