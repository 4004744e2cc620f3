"""`python -m streamstats`."""

from .cli import program

program()
