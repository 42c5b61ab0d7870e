"""`python -m service.cli COMMAND ...`: what `edged` becomes for a command that computes."""

import sys

from edged.signing.verification import signature_of
from service.cli.main import execute
from service.cli.parser import parse
from service.worker.sandbox import enter_to_read

if __name__ == "__main__":
    options = parse(sys.argv[1:])
    if options.name == "inspect":  # files that may be hostile, and nothing else
        sys.exit(execute(options, lambda: enter_to_read((options.checkpoint, signature_of(options.checkpoint)))))
    sys.exit(execute(options))
