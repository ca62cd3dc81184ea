"""Official weights, of either code, in our models: the official computation's numbers, or an error that names the tensor."""

import ast
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training import bundles, keras_ladagan
from training.official_checkpoints import NOISE_DIM, official
from training.running import run_command

from lada_kernels.training import checkpoint
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.official import MODELS, read_pytorch
from lada_kernels.training.tensorflow_weights import find_checkpoint, read_tensorflow
from lada_kernels.training.trainer import build_discriminator, build_generator
from lada_kernels.training.weights import load_generator

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
VALUE = keras_ladagan.SUFFIX


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda name, *args: run_command(monkeypatch, capsys, name, *args)


def relative_error(value, truth):
    return ((value - truth).norm() / truth.norm()).item()


def nchw(x):
    return torch.from_numpy(x).movedim(-1, 1)


# The generator's patches and its decoder, and expanding widths; encoders of 2, 3 and 4 widths.
CONFIGURATIONS = {
    "32 patches": ({"img_size": 32, "dim": (16, 12, 8)}, (4, 8)),
    "64 decoder": ({"img_size": 64, "dim": (16, 12, 8), "decoder_dim": (6,)}, (4, 6, 8)),
    "128 patches": ({"img_size": 128, "dim": (16, 8, 16)}, (4, 4, 4, 8)),
}
WIDTHS = {"heads": (2, 4, 2), "mlp_dim": (8, 10, 12)}
HEAD = {"out_dim": (8, 10), "heads": 4, "mlp_dim": 12}
OTHERS = {
    "_CHECKPOINTABLE_OBJECT_GRAPH": b"the graph",
    f"g_optimizer/iter{VALUE}": np.array(7, np.int64),
    f"d_optimizer/learning_rate{VALUE}": np.array(0.1, np.float32),
    f"generator/ch_conv/kernel/.OPTIMIZER_SLOT/g_optimizer/m{VALUE}": np.zeros(3, np.float32),
    f"n_images{VALUE}": np.array(896, np.int32),
    f"fid{VALUE}": np.array(3.48, np.float32),
    f"save_counter{VALUE}": np.array(1, np.int64),
}


def keras_models(name):
    """Variables of the three models, and their outputs: the checkpoint, and [images of G, images of its average, logits]."""
    options, enc_dim = CONFIGURATIONS[name]
    random = np.random.default_rng(0)
    z, x = random.normal(size=(2, NOISE_DIM)), random.normal(size=(2, options["img_size"], options["img_size"], 3))
    variables, outputs = dict(OTHERS), {}
    roots = {"generator": "generator", "ema": "ema_generator", "discriminator": "discriminator"}
    for seed, (model, root) in enumerate(roots.items()):
        net = keras_ladagan.Network(root, seed)
        if model == "discriminator":
            outputs[model] = torch.from_numpy(keras_ladagan.discriminator(net, x, enc_dim, **HEAD))
        else:
            outputs[model] = nchw(keras_ladagan.generator(net, z, **options, **WIDTHS))
        variables |= net.variables
    return variables, torch.from_numpy(z), nchw(x), outputs


def outputs_of(weights, z, x):
    generators = {name: build_generator(weights.config) for name in ("generator", "ema")}
    models = {**generators, "discriminator": build_discriminator(weights.config)}
    for name, model in models.items():
        model.load_state_dict(weights.states[name], strict=True)
        model.to(z.dtype).eval()
    with torch.no_grad():
        return {name: model(x if name == "discriminator" else z) for name, model in models.items()}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_tensorflow_weights_compute_what_keras_does(tmp_path, name):
    variables, z, x, truth = keras_models(name)
    bundles.write_bundle(tmp_path / "ckpt-1", variables)
    weights = read_tensorflow(tmp_path / "ckpt-1")
    options, enc_dim = CONFIGURATIONS[name]
    generator, discriminator = weights.config.generator, weights.config.discriminator
    assert weights.iteration == 7
    assert weights.config.img_size == options["img_size"]
    assert (generator.dim, generator.decoder_dim) == (options["dim"], options.get("decoder_dim", ()))
    assert (generator.noise_dim, generator.heads, generator.mlp_dim) == (NOISE_DIM, WIDTHS["heads"], WIDTHS["mlp_dim"])
    assert (discriminator.enc_dim, discriminator.out_dim) == (enc_dim, HEAD["out_dim"])
    assert (discriminator.heads, discriminator.mlp_dim) == (HEAD["heads"], HEAD["mlp_dim"])
    assert generator.flavor == discriminator.flavor == "tf"
    for model, value in outputs_of(weights, z, x).items():
        assert relative_error(value, truth[model]) < 1e-12, model


def test_a_checkpoint_that_tensorflow_wrote(command, tmp_path):
    """By TensorFlow 2.13 and the official code: 64 pixels, decoder, Adam's moments; float32 there and here."""
    folder = GOLDEN / "ladagan_tensorflow"
    weights = read_tensorflow(find_checkpoint(folder))
    with np.load(folder / "outputs.npz") as archive:
        images, logits = nchw(archive["images"]), torch.from_numpy(archive["logits"])
    z = torch.arange(weights.config.generator.noise_dim).sin()[None]
    x = torch.arange(64 * 64 * 3).sin().reshape(1, 64, 64, 3).movedim(-1, 1)
    outputs = outputs_of(weights, z, x)
    assert weights.iteration == 3
    assert relative_error(outputs["ema"], images) < 2e-6
    assert relative_error(outputs["discriminator"], logits) < 2e-6
    for source in (folder, folder / "ckpt-6", folder / "ckpt-6.index"):
        code, out, _ = command("convert", source, "--out", tmp_path / source.name)
        assert code == 0
        assert out == f"{tmp_path / source.name}: LadaGAN of 64 pixels, flavor tf, step 3\n"
        assert torch.equal(load_generator(tmp_path / source.name, "cpu")(z), outputs["ema"])


KERNEL = f"ema_generator/block_16/attn/wk/kernel{VALUE}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({KERNEL: None}, f"missing: {KERNEL}"),
        ({"ema_generator/extra" + VALUE: np.zeros(2, np.float32)}, f"unknown: ema_generator/extra{VALUE}"),
        ({"stranger": np.zeros(2, np.float32)}, "unknown: stranger"),
        ({KERNEL: np.zeros((12, 11), np.float32)}, rf"misshapen: {KERNEL} \[12, 11\] for \[12, 12\]"),
        ({KERNEL: np.zeros(12, np.float32)}, rf"{KERNEL} in .*: expected 2 dimensions, got shape \[12\]"),
        ({KERNEL: np.zeros((12, 12))}, f"{KERNEL} in .*: expected float32, got float64"),
        ({KERNEL: np.zeros((12, 12), np.float16)}, f"{KERNEL} in .*: DataType 19 cannot be read"),
        ({f"ema_generator/ch_conv/kernel{VALUE}": np.zeros((3, 3, 5, 3), np.float32)}, "ch_conv.weight: 5 channels"),
        ({f"discriminator/inp_conv/layer_with_weights-0/kernel{VALUE}": None}, "missing: discriminator/inp_conv/layer"),
        ({f"g_optimizer/iter{VALUE}": None}, f"missing: g_optimizer/iter{VALUE}"),
    ],
)
def test_what_does_not_fit_a_tensorflow_checkpoint_is_named(tmp_path, change, message):
    variables, *_ = keras_models("32 patches")
    variables = {name: value for name, value in {**variables, **change}.items() if value is not None}
    bundles.write_bundle(tmp_path / "ckpt-1", variables)
    with pytest.raises(TrainingError, match=message):
        read_tensorflow(tmp_path / "ckpt-1")


def test_steps_by_the_optimisers_of_keras_since_2_11(tmp_path):
    variables, *_ = keras_models("32 patches")
    steps = variables.pop(f"g_optimizer/iter{VALUE}")
    bundles.write_bundle(tmp_path / "ckpt-1", {**variables, f"g_optimizer/_iterations{VALUE}": steps})
    assert read_tensorflow(tmp_path / "ckpt-1").iteration == 7


def test_the_latest_of_a_folder(tmp_path):
    with pytest.raises(TrainingError, match="no file named checkpoint"):
        find_checkpoint(tmp_path)
    state = tmp_path / "checkpoint"
    state.write_text("nothing\n")
    with pytest.raises(TrainingError, match="names no model_checkpoint_path"):
        find_checkpoint(tmp_path)
    state.write_text('model_checkpoint_path: "/elsewhere/ckpt-2"\nall_model_checkpoint_paths: "ckpt-1"\n')
    assert find_checkpoint(tmp_path) == tmp_path / "ckpt-2"


@pytest.mark.parametrize(("img_size", "enc_dim"), [(32, (8, 16)), (64, (4, 8, 16)), (128, (4, 4, 8, 16))])
def test_pytorch_weights_and_their_configuration(tmp_path, img_size, enc_dim):
    state = official(img_size, enc_dim)
    torch.save(state, tmp_path / "last_ckpt.pt")
    weights = read_pytorch(tmp_path / "last_ckpt.pt")
    generator, discriminator = weights.config.generator, weights.config.discriminator
    assert (weights.iteration, weights.config.img_size) == (3000, img_size)
    assert (generator.dim, generator.heads, generator.mlp_dim) == ((16, 8, 16), (2, 4, 2), (8, 10, 12))
    assert (generator.noise_dim, generator.flavor) == (NOISE_DIM, "torch")
    assert (discriminator.enc_dim, discriminator.out_dim) == (enc_dim, (8, 10))
    assert (discriminator.heads, discriminator.mlp_dim, discriminator.flavor) == (4, 12, "torch")
    for name in MODELS:
        assert state[name].keys() == weights.states[name].keys()
        assert all(torch.equal(value, state[name][key]) for key, value in weights.states[name].items())
    outputs_of(weights, torch.randn(1, NOISE_DIM), torch.randn(1, 3, img_size, img_size))


@pytest.mark.parametrize("size", [32, 64])
def test_configuration_of_weights_that_the_official_code_wrote(tmp_path, size):
    with np.load(GOLDEN / f"ladagan_{size}.npz") as archive:
        arrays = {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files if name[:2] in ("G/", "D/")}
        truth = ast.literal_eval(str(archive["config"]))
    models = {prefix: {k[2:]: v for k, v in arrays.items() if k[0] == prefix} for prefix in "GD"}
    torch.save({"iter": 1, "generator": models["G"], "ema": models["G"], "discriminator": models["D"]}, tmp_path / "ckpt.pt")
    config = read_pytorch(tmp_path / "ckpt.pt").config
    assert config.img_size == truth["img_size"] == size
    assert [config.generator.dim, config.generator.heads] == [tuple(truth["dim"]), tuple(truth["heads"])]
    assert [config.generator.mlp_dim, config.generator.noise_dim] == [tuple(truth["mlp_dim"]), truth["noise_dim"]]
    assert [config.discriminator.enc_dim, config.discriminator.out_dim] == [tuple(truth["enc"]), tuple(truth["out"])]
    assert [config.discriminator.heads, config.discriminator.mlp_dim] == [truth["dheads"], truth["dmlp"]]


def renamed(file: Path, old: bytes, new: bytes) -> None:
    """Replace a name in the pickle of a file that torch.save wrote."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            assert not name.endswith("data.pkl") or old in content
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_fid_scalars_of_any_numpy(tmp_path, module):
    file = tmp_path / "last_ckpt.pt"
    torch.save(official(), file)
    with pytest.raises(pickle.UnpicklingError):  # what resuming the official code on torch 2.6 and later runs into
        torch.load(file)
    here = np.float64(0).__reduce__()[0].__module__.encode()
    renamed(file, b"c" + here + b"\n", b"c" + module + b"\n")
    assert read_pytorch(file).iteration == 3000
    torch.save(official(fid=12.5, best_fid=1000.0), file)
    assert read_pytorch(file).iteration == 3000


class Trap:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_of_a_pytorch_file_is_run(tmp_path):
    torch.save(official(fid=Trap(tmp_path / "sprung")), tmp_path / "last_ckpt.pt")
    with pytest.raises(TrainingError, match=r"last_ckpt\.pt is not a readable PyTorch checkpoint: "):
        read_pytorch(tmp_path / "last_ckpt.pt")
    assert not (tmp_path / "sprung").exists()


def altered(change):
    state = official()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("ema"), "is not a training checkpoint of the official code: it lacks ema"),
        (lambda s: s.update(ema=[1, 2]), r"ema in .*last_ckpt\.pt is no state dict"),
        (lambda s: s["generator"].update(extra=1), r"generator in .*last_ckpt\.pt is no state dict"),
        (lambda s: s["ema"].pop("conv_256.bias"), r"ema in .* does not fit: missing: conv_256\.bias"),
        (lambda s: s["ema"].pop("pos_256"), "pos_256 is missing, so this is no LadaGAN"),
        (lambda s: s["ema"].update(pos_64=torch.zeros(())), r"pos_64 has shape \[\], so this is no LadaGAN"),
        (lambda s: s["generator"].update(extra=torch.ones(1)), "generator in .* does not fit: unknown: extra"),
        (
            lambda s: s["discriminator"].update({"conv_256.bias": torch.ones(3)}),
            r"discriminator in .* misshapen: conv_256\.bias \[3\] for \[8\]",
        ),
        (lambda s: s["ema"].update({"ch_conv.weight": torch.ones(3, 3, 3, 3)}), r"ch_conv\.weight: 3 channels are left by no"),
        (lambda s: s["discriminator"].pop("encoder.0.main.0.weight"), "discriminator: enc_dim: 1 widths"),
        (
            lambda s: s["ema"].update({"block_64.attn.q_attn.weight": torch.ones(3, 16)}),
            "generator: heads: got 3, expected a divisor of dim",
        ),
    ],
)
def test_what_does_not_fit_a_pytorch_checkpoint_is_named(tmp_path, change, message):
    torch.save(altered(change), tmp_path / "last_ckpt.pt")
    with pytest.raises(TrainingError, match=message):
        read_pytorch(tmp_path / "last_ckpt.pt")


def test_other_files_are_clear_errors(tmp_path, command):
    code, _, _ = command("convert", tmp_path / "nowhere.pt", "--out", tmp_path / "run")
    assert code == f"error: no checkpoint at {tmp_path / 'nowhere.pt'}"
    (tmp_path / "text.pt").write_text("no checkpoint\n")
    code, _, _ = command("convert", tmp_path / "text.pt", "--out", tmp_path / "run")
    assert code.startswith(f"error: {tmp_path / 'text.pt'} is not a readable PyTorch checkpoint: ")
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    (tmp_path / "list.pt").write_bytes(buffer.getvalue())
    code, _, _ = command("convert", tmp_path / "list.pt", "--out", tmp_path / "run")
    assert code.endswith("it lacks iter, generator, discriminator, ema")
    assert not (tmp_path / "run").exists()


def test_converted_weights_are_sampled_but_never_resumed(tmp_path, command):
    run, state = tmp_path / "run", official()
    torch.save(state, tmp_path / "last_ckpt.pt")
    code, out, _ = command("convert", tmp_path / "last_ckpt.pt", "--out", run)
    assert code == 0
    assert out == f"{run}: LadaGAN of 32 pixels, flavor torch, step 3000\n"
    assert all(torch.equal(value, state["ema"][key]) for key, value in checkpoint.read_latest(run)["ema"].items())
    code, out, _ = command("sample", run, "--images", 4, "--out", tmp_path / "grid.png")
    assert code == 0
    assert "4 samples of step 3000" in out
    assert Image.open(tmp_path / "grid.png").size == (2 * 34 + 2, 2 * 34 + 2)
    code, _, _ = command("train", "--resume", run, "--data.source", "digits")
    assert code == f"error: {run} was converted: it holds weights, not a run that could be resumed"
    code, _, _ = command("convert", tmp_path / "last_ckpt.pt", "--out", run)
    assert code == f"error: out: {run} already holds a run; name another folder"
