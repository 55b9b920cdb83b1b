"""A crawl whose pages stream into a session in append-mode."""
