"""`python -m jaxvol.convert ...`, see jaxvol/convert/published.py."""

import sys

from jaxvol.convert.published import cli

if __name__ == "__main__":
    sys.exit(cli(sys.argv))
