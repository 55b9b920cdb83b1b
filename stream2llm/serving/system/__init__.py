"""This process and its machine: time, memory, ports, signals, other processes of ours."""
