"""Services over HTTP: as LinTO's LLM Gateway has them, as jobs of ours, and as models."""
