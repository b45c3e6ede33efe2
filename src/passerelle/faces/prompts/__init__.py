"""Prompts over HTTP: the studio's `/prompt`, `/v1/prompts`, and `prompt` in chats and responses."""
