"""Examples; the demo first."""

import os

# As for the `stream2llm` command: gRPC logs nothing of routers that go away when a cluster stops.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
