"""`python -m service.cli COMMAND ...`: what `edged` becomes for a command that computes."""

import sys

from service.cli.main import execute
from service.cli.parser import parse

if __name__ == "__main__":
    sys.exit(execute(parse(sys.argv[1:])))
