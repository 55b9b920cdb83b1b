"""The router: admits sessions, places them on workers, relays tokens."""
