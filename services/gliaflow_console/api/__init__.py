"""The HTTP API of the console, one module a subject; each has ``routes(console)``."""
