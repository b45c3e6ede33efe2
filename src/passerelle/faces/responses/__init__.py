"""OpenAI's Responses over any engine: items in, a chat request to the gateway, items and events out."""
