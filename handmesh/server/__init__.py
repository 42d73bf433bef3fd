"""`handmesh serve`: hands over HTTP, WebSocket and OSC, and a page that shows them. Needs the `web` extra."""
