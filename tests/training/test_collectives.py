"""What the rules of the distributed tests would see if something were gathered or moved."""

from jaxvol.training import gradients
from tests.training.test_distributed import (
    ONE,
    PLAIN,
    SGD,
    deviation,
    gathered_fields,
    gradient,
    program,
    traffic,
    trained,
)


def test_factorised_weights():
    """The default experiment's Tucker weights, every frequency kept."""
    tucker = {**SGD, **PLAIN, "model__factorization": "tucker", "model__modes": (8, 8, 8)}
    one, many = trained(1, ONE, **tucker), trained(1, (2, 2, 2), **tucker)
    assert deviation(gradient(many[0][1]), gradient(one[0][1])) < 1e-5
    state, _, compiled = program((2, 2, 2), **tucker)
    assert gathered_fields(compiled, (2, 2, 2), state.params) == []


def test_the_rules_see_what_they_forbid(monkeypatch):
    """An FFT along a split depth gathers it, and splitting a batch in the obvious order moves half
    of it.
    """
    state, _, compiled = program((1, 1, 8), **PLAIN, model__implementation="fft")
    assert gathered_fields(compiled, (1, 1, 8), state.params)
    monkeypatch.setattr(
        gradients,
        "split",
        lambda batch, parts: {
            name: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) for name, x in batch.items()
        },
    )
    assert set(traffic(program((2, 1, 1), **PLAIN, micro_batches=2)[2])) > {"all-reduce"}
