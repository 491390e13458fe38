"""Servers and the local platform, for tests and `make pipeline-local`; not in the wheel."""
