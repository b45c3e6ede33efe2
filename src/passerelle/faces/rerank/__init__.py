"""Ranking documents for a query, and scoring pairs of texts: ``/v1/rerank`` and ``/v1/score``."""
