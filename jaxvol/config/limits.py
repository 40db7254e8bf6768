"""Limits of the pre-flight's checks, gathered from the checks: metric -> (side, warn, fail).

(">", 0.9, 0.5) asks for more than 0.9, warns below it and fails below 0.5; ("<", 0.1, 0.5) asks for
less than 0.1.  They stand beside their measurements, as LIMITS of
jaxvol/diagnostics/checks/<check>.py, next to MEANING, which says what each metric means and what to
do about it.  Override one with --config.preflight.limits.overfit.explained="('>', 0.8, 0.4)".
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jaxvol.runtime import modules

CHECKS = "diagnostics/checks"


def limits() -> ConfigDict:
    """Check -> metric -> limit, of all checks of jaxvol.

    Those of the user's own checks are added where they are read (diagnostics/engine.py); a config
    file changes them with `config.preflight.limits.symmetry = {"error": ("<", 0.1, 0.5)}`.
    """
    return ConfigDict(
        {name: ConfigDict(modules.module(CHECKS, name).LIMITS) for name in modules.choices(CHECKS)}
    )
