"""Requests to addresses that somebody else named."""
