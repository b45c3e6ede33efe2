"""Prompt templates that people keep here: versions that never change, labels that move, and the texts made of them."""
