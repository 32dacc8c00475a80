"""`python -m selfsame` is the command line."""

from selfsame.cli.main import entry

entry()
