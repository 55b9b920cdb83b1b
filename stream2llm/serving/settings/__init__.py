"""What a component is started with: sections of the configuration file and specs, as values."""
