"""How a process says with its end what is to be done. By itself, so that what becomes Envoy imports no server."""

EXIT_CANNOT_START = 78
"""Exit status of a process that a person has to help: wrong settings, a port in use, a folder it cannot write to."""
