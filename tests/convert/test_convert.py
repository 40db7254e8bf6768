"""Weights of published models: parity, errors that name tensors, workdirs that others accept."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxvol
from jaxvol import convert, main
from jaxvol.convert import command_line, fno, published
from jaxvol.data.io import weights
from jaxvol.training import restore
from jaxvol.types import UserError
from tests import FIXTURES, ROOT, tiny

ORIGINAL = {
    "n_modes": [4, 4, 4],
    "in_channels": 1,
    "out_channels": 1,
    "hidden_channels": 4,
    "n_layers": 2,
}


def random_tensors(original=ORIGINAL, seed=0):
    """Tensors of a published FNO, spectral weights split in two."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in fno.expected(original, {}).items():
        parts = (".real", ".imag") if name.endswith("weight.tensor") else ("",)
        tensors |= {name + part: rng.normal(size=shape).astype(np.float32) for part in parts}
    return tensors


@pytest.mark.parametrize("case", ["even", "odd_noncubic", "modes_exceed_grid"])
def test_spectral_conv_equals_the_published_one(case):
    with np.load(FIXTURES / f"fno_spectralconv_{case}.npz", allow_pickle=False) as file:
        fixture = dict(file)
    tensors = {
        name.removeprefix("param/"): x for name, x in fixture.items() if name.startswith("param/")
    }
    module, variables = convert.from_torch(
        "spectral_conv", tensors, json.loads(str(fixture["config"]))
    )
    for name, output in (("x", "y__patched_ifftshift"), ("x_2x", "y_2x")):
        y = jax.jit(module.apply)(variables, np.moveaxis(fixture[f"input/{name}"], 1, -1))
        reference = np.moveaxis(fixture[f"output/{output}"], 1, -1)
        np.testing.assert_allclose(y, reference, atol=5e-5 * reference.std(), rtol=0)


def test_every_wrong_tensor_is_named_in_one_error():
    tensors = random_tensors()
    del tensors["lifting.fcs.0.bias"], tensors["fno_blocks.convs.1.bias"]
    tensors["projection.fcs.1.weight"] = tensors["projection.fcs.1.weight"][..., 0]
    tensors |= {"head.weight": np.zeros(3), "bn.num_batches_tracked": np.array(7)}
    with pytest.raises(UserError) as error:
        convert.from_torch("fno", tensors, ORIGINAL)
    text = str(error.value)
    assert (
        "2 missing" in text and "lifting.fcs.0.bias" in text and "fno_blocks.convs.1.bias" in text
    )
    assert "1 superfluous: head.weight (3,)" in text and "num_batches" not in text
    assert "projection.fcs.1.weight: found (1, 8), expected (1, 8, 1)" in text


def test_wrong_requests_are_explained():
    with pytest.raises(UserError, match="no converter for 'unet'; known are fno, spectral_conv"):
        convert.from_torch("unet", {}, {})
    with pytest.raises(UserError, match="have no 'n_layers'; found n_modes, hidden_channels"):
        convert.from_torch("fno", {}, {"n_modes": [4, 4, 4], "hidden_channels": 4})
    with pytest.raises(UserError, match="stabilizer='tanh'.*cannot be converted"):
        convert.from_torch("fno", {}, {**ORIGINAL, "stabilizer": "tanh"})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "n_modes": [4, 3, 6],
            "norm": "instance_norm",
            "fno_skip": "soft-gating",
            "channel_mlp_skip": "linear",
        },
        {
            "n_modes": [4, 4],
            "positional_embedding": None,
            "fno_skip": "identity",
            "channel_mlp_expansion": 1.0,
        },
        {"factorization": "Tucker", "rank": 0.3, "in_channels": 2, "out_channels": 3},
        {"factorization": "CP", "rank": 0.3},
    ],
)
def test_options_of_the_package(options, tmp_path):
    """Against neuraloperator itself, through its own file, where it is installed."""
    torch, models = pytest.importorskip("torch"), pytest.importorskip("neuralop.models")
    torch.manual_seed(0)
    original = {**ORIGINAL, **options}
    model = models.FNO(**original).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    # its _metadata names functions, which stay names
    torch.save(model.state_dict(), tmp_path / "fno.pt")
    module, variables = convert.from_torch("fno", weights.read(tmp_path / "fno.pt"), original)
    x = np.random.default_rng(1).normal(
        size=(2, *(10, 12, 8)[3 - len(original["n_modes"]) :], original["in_channels"])
    )
    x = x.astype(np.float32)
    reference = np.moveaxis(model(torch.as_tensor(np.moveaxis(x, -1, 1))).detach().numpy(), 1, -1)
    y = jax.jit(module.apply)(variables, x.reshape(2, *(1,) * (5 - x.ndim), *x.shape[1:])).reshape(
        reference.shape
    )
    np.testing.assert_allclose(y, reference, atol=5e-5 * reference.std(), rtol=0)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The workdir of a converted FNO, its module and its variables."""
    folder = tmp_path_factory.mktemp("convert")
    np.savez(folder / "fno.npz", **random_tensors())
    (folder / "fno.json").write_text(json.dumps(ORIGINAL))
    assert (
        call(
            folder,
            "fno",
            folder / "fno.npz",
            "--config.data.input_normaliser=()",
            "--config.data.target_normaliser=()",
        )
        == 0
    )
    return folder, *convert.from_torch("fno", random_tensors(), ORIGINAL)


def settings(folder):
    return (
        f"--config={tiny.__file__}",
        f"--config.data.cache_dir={folder}/cache",
        "--config.batch_size=8",
        "--config.evaluate.batch_size=8",
    )


def call(folder, kind, file, *arguments, output="imported"):
    return command_line.cli(
        [
            "convert",
            f"--model={kind}",
            f"--original={folder}/{kind}.json",
            f"--input={file}",
            f"--output={folder}/{output}",
            *settings(folder),
            *arguments,
        ]
    )


def test_an_imported_workdir_predicts_as_the_original(imported):
    folder, module, variables = imported
    predict, config, _ = jaxvol.load(folder / "imported")
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(predict(x), jax.jit(module.apply)(variables, x), atol=1e-5)
    assert (
        config.model.width == 4
        and json.loads((folder / "imported/imported.json").read_text())["original"] == ORIGINAL
    )


def test_it_is_scored_and_a_start_for_others(imported, capsys):
    folder, _, variables = imported
    assert (
        main.cli(["jaxvol", *settings(folder), f"--workdir={folder}/imported", "--mode=evaluate"])
        == 0
    )
    assert "FNO" in capsys.readouterr().out
    scores = json.loads((folder / "imported/evaluation/metrics.json").read_text())
    assert scores["step"] == 0 and scores["weights"] == "ema" and scores["model"]["vrmse"] > 1
    for kind in ("ema", "raw"):  # init_from takes the averaged ones
        params = restore.restore(folder / "imported", "best", kind)[1]
        jax.tree.map(np.testing.assert_array_equal, params["net"], variables["params"])


def test_a_generator_is_a_regression(imported):
    folder = imported[0]
    with np.load(FIXTURES / "gan_generator_trilinear.npz", allow_pickle=False) as file:
        fixture = dict(file)
    (folder / "generator.json").write_text(str(fixture["config"]))
    assert (
        call(
            folder,
            "generator",
            FIXTURES / "gan_generator_trilinear.npz",
            "--config.data.input_normaliser=()",
            "--config.data.target_normaliser=()",
            output="gan",
        )
        == 0
    )
    predict, config, _ = jaxvol.load(folder / "gan")
    assert (config.model.name, config.task.name) == ("pix2pixcc", "regression")
    reference = np.moveaxis(fixture["output/y"], 1, -1)
    np.testing.assert_allclose(
        predict(np.moveaxis(fixture["input/x"], 1, -1)),
        reference,
        atol=2e-4 * reference.std(),
        rtol=0,
    )


def test_normalisers_are_off_unless_a_config_is_given(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "read", lambda path, key: {})
    monkeypatch.setattr(command_line, "read_original", lambda path: {})
    chain = (("standardise", {}),)

    def data(*more):
        return parse(tmp_path, monkeypatch, "fno", *more).config.data

    assert data().input_normaliser == () == data().target_normaliser
    overridden = data("--config.data.target_normaliser=(('standardise', {}),)")
    assert overridden.target_normaliser == chain and overridden.input_normaliser == ()
    assert data("--config=configs/fno.py").target_normaliser == chain


@pytest.mark.parametrize("kind", published.NETWORKS)
def test_every_network_has_a_config_in_an_empty_folder(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "read", lambda path, key: {})
    monkeypatch.setattr(command_line, "read_original", lambda path: {})
    config = parse(tmp_path, monkeypatch, kind, "--config.total_steps=7").config
    assert config.total_steps == 7 and config.model.name == Path(published.NETWORKS[kind][0]).stem


def test_a_config_of_the_current_folder_comes_first(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "read", lambda path, key: {})
    monkeypatch.setattr(command_line, "read_original", lambda path: {})
    (tmp_path / "configs").mkdir()
    text = (ROOT / "tests" / "tiny.py").read_text()
    (tmp_path / "configs" / "fno.py").write_text(text)
    assert parse(tmp_path, monkeypatch, "fno").config.data.grid == 8


def parse(folder, monkeypatch, kind, *more):
    """A command line in `folder`, whose file of weights is not read."""
    monkeypatch.chdir(folder)
    (folder / "weights.pt").write_text("nothing")
    given = [f"--model={kind}", "--original=none.json", "--input=weights.pt", "--output=new"]
    return command_line.parse(["convert", *given, *more])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "holds a run already"),
        (("--output=new", "--original=none.json"), "none.json: it cannot be read as JSON"),
        (("--output=new", "--input=none.pt"), "none.pt: there is no such file"),
        (("--output=new", "--model=unet"), "should be one of"),
        (("--output=new", "--config.data.grid=2"), "data.grid is 2"),
        (("--output=",), "missing: --output"),
        (("--output=new", "more"), "Arguments more are not understood"),
        (("--output=new", "--config.nothing=3"), "nothing"),
        (
            ("--output=new", "--original=two.json"),
            "lifting.fcs.0.weight: found (8, 4, 1), expected (8, 5, 1)",
        ),
        (
            ("--output=new", "--original=two.json", "--input=two.npz"),
            "1 -> 1 channel(s), 8x8x8 voxels",
        ),
    ],
)
def test_errors_are_for_people(imported, arguments, message, capsys, monkeypatch):
    folder = imported[0]
    monkeypatch.chdir(folder)
    two = {**ORIGINAL, "in_channels": 2}
    np.savez("two.npz", **random_tensors(two))
    Path("two.json").write_text(json.dumps(two))
    assert call(folder, "fno", folder / "fno.npz", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error, error
