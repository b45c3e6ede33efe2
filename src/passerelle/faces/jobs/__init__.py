"""Jobs over HTTP: shown, steered, followed by events and websockets, their results edited and exported."""
