"""The paper's settings, simulated: what it published, and the machine that it measured on."""
