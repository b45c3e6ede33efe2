"""Passerelle: one front door for an organisation's own language models."""

__version__ = "0.1.0"
