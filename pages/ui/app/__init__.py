"""The application: its server, its worker supervisor, and the context of a page."""
