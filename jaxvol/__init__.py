"""jaxvol trains 3D models that can be trusted: `python -m jaxvol.main --config=configs/fno.py`."""

__version__ = "0.1.0"


def load(workdir, which="best", kind="ema", transforms="none"):
    """(predict, config, spec) of a run, see jaxvol.config.components.load; JAX is imported only
    when it is called.
    """
    from jaxvol.evaluation import loading

    return loading.load(workdir, which, kind, transforms)
