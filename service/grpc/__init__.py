"""gRPC: the Open Inference Protocol's service. Nothing of it is imported unless `serve.grpc_port` is set."""

import logging
import os

# Read by the library when it is imported. It would write lines of its own to the log, and prepare for forks that never
# happen: children of this process are started by exec.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
logging.getLogger("grpc").setLevel(logging.INFO)  # at debug it logs a line for each call
