"""Published weights: `from jaxvol import convert; convert.from_torch(...)`.

As a command: `python -m jaxvol.convert`.
"""

from jaxvol.convert.published import from_torch, import_run

__all__ = ["from_torch", "import_run"]
