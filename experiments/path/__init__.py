"""What a router's path of a token, an event and a seal costs, beside relays that do nothing else."""
