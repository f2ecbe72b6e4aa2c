"""Readers under mutated files, command lines under random overrides: see __main__.py."""
