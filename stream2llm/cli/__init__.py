"""The `stream2llm` command."""

import os

# gRPC's core reads it when it is imported. By default it logs each peer that goes away, between
# the lines that a command prints.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
