"""Clients with many dependencies of their own, each in an environment of its own: the tier `make test-clients`."""
