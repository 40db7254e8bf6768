"""Published weights in and out: `from jaxvol import convert; convert.from_torch(...)`, or `python
-m jaxvol.convert`.
"""

from jaxvol.convert.published import from_torch, import_run

__all__ = ["from_torch", "import_run"]
