"""`python -m jaxvol.convert ...`, see jaxvol/convert/command_line.py."""

import sys

from jaxvol.convert.command_line import cli

if __name__ == "__main__":
    sys.exit(cli(sys.argv))
