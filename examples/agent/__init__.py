"""An agent whose tools run side by side, each result streaming into the turn's session."""
