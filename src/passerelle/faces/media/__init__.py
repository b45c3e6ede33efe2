"""OpenAI's routes of sound and pictures, for models whose configuration lists them in ``media``."""
