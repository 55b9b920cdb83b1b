"""The inside of an actor: its shell, its node, its listeners' guards, what it reports."""
