"""Fine-tuned checkpoints of AIM, ST-Adapter and ZeroI2V: read, run, evaluated and trained on."""

import dataclasses
import json
import math
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import inti_jax
from inti_jax import config, predict
from inti_jax.config import ConfigError
from inti_jax.config.backbones import BACKBONES, CLIP_MEAN, CLIP_STD
from inti_jax.data.dataset import open_dataset
from inti_jax.errors import UserError
from inti_jax.evaluation import evaluate
from inti_jax.pretrained.lazy_array import LazyArray
from inti_jax.pretrained.peers import methods
from inti_jax.pretrained.sources import ForeignCheckpoint
from inti_jax.runs import peer_file, trained_file
from inti_jax.runs.peer_file import Given
from inti_jax.runs.record import Dataset, RunRecord
from inti_jax.runs.writers.jsonl import read_metrics
from inti_jax.training import loop
from tests.commands import convert, plan
from tests.configs import tiny
from tests.models import torch_references as references
from tests.pretrained import peers
from tests.pretrained.weights import write_tiny

pytestmark = pytest.mark.usefixtures("unreported")

SAMPLING = ("--sampling", "dense:2")
LONG = ((-1, 1), (1, 1), (-2, 1), (2, 1))
# Arguments of convert, and the same settings for the reference.
SETTINGS = {
    "aim": (("--scale", 0.5), {"scale": 0.5, "temporal_adapters": 1}),
    "aim_2": (("--scale", 1), {"scale": 1.0, "temporal_adapters": 2}),
    "zero_i2v": (("--scale", 0.5, "--shifts", LONG), {"scale": 0.5, "shifts": LONG}),
    "st_mlp": (("--frames", 4), {"before": ("mlp",)}),
    "st_both": (("--frames", 4), {"before": ("attn", "mlp")}),
}
REFERENCES = {
    "aim": references.aim,
    "aim_2": references.aim,
    "zero_i2v": references.zero_i2v,
    "st_mlp": references.st_adapter,
    "st_both": references.st_adapter,
}


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", peers.SIZE)
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The image tower in AIM's checkpoint, as a CLIP of its own."""
    directory = tmp_path_factory.mktemp("clip")
    torch.save(peers.clip_tensors(), directory / "clip.pt")
    given = ("--activation", "quick_gelu", "--head_size", 8)
    assert convert(directory / "clip.pt", "--out", directory / "clip.safetensors", *given) == 0
    return directory / "clip.safetensors"


@pytest.fixture(scope="module")
def labels(motion_data, tmp_path_factory):
    names = open_dataset("motion_digits", motion_data, "val").labels
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("\n".join((*names, "")))
    return path


@pytest.fixture(scope="module")
def converted(clip, labels, tmp_path_factory):
    """The file of each kind, made once."""
    directory = tmp_path_factory.mktemp("peers")
    made: dict[str, Path] = {}

    def make(kind):
        if kind not in made:
            source = peers.write(directory / f"{kind}.pth", kind, peers.tensors(kind))
            out = directory / f"{kind}.safetensors"
            given = (*SETTINGS[kind][0], *SAMPLING, *(("--pretrained", clip) if kind[:2] == "st" else ()))
            assert convert(source, "--out", out, "--labels", labels, *given) == 0
            made[kind] = out
        return made[kind]

    return make


@pytest.mark.parametrize("kind", peers.KINDS)
def test_logits_are_the_references(kind, converted, clip, labels):
    model = inti_jax.load(converted(kind))
    assert model.labels == tuple(labels.read_text().split("\n")[:-1])
    video = np.random.default_rng(1).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    params = peers.reference(kind, peers.tensors(kind))
    mean, std = peers.MEAN, peers.STD
    if kind.startswith("st"):
        tower = {name.removeprefix("visual."): value for name, value in peers.clip_tensors().items()}
        params |= peers.reference("aim", tower)
        mean, std = np.array(CLIP_MEAN), np.array(CLIP_STD)
    frames = torch.from_numpy((video / 255 - mean) / std)
    expected = references.linear(REFERENCES[kind](params, frames, **SETTINGS[kind][1]), params, "head")
    largest = expected.abs().max()
    np.testing.assert_allclose(model(video), expected, rtol=0, atol=1e-5 * largest)
    # The frames' order counts, so the modules over time are at work.
    assert np.abs(model(video[:, ::-1]) - model(video)).max() > 1e-3 * largest


def settings_for(file, motion_data, kind, clip, **changes):
    theirs = trained_file.read_record(file).config.model
    section = dataclasses.asdict(getattr(theirs, theirs.adaptation))
    return tiny(
        motion_data,
        model__adaptation=theirs.adaptation,
        model__pretrained=str(clip if kind.startswith("st") else file),
        model__start_from=str(file),
        model__head__dropout=0.5,
        data__num_frames=4,
        data__resolution=16,
        train__steps=1,
        **{f"model__{theirs.adaptation}__{key}": value for key, value in section.items()},
        **changes,
    )


@pytest.mark.parametrize("kind", ["aim_2", "zero_i2v", "st_mlp"])
def test_predicted_evaluated_planned_and_trained_on(kind, converted, motion_data, clip, tmp_path, capsys):
    file = converted(kind)
    dataset = open_dataset("motion_digits", motion_data, "val")
    paths = []
    for i in range(len(dataset)):
        paths.append(tmp_path / f"{i}.mp4")
        paths[i].write_bytes(dataset[i].video)
    found = list(predict.predict_files(file, paths, topk=1))
    right = [
        result["predictions"][0]["label"] == dataset.labels[dataset[i].label]
        for i, result in enumerate(found)
    ]
    settings = settings_for(file, motion_data, kind, clip, eval__clips=3)
    evaluate.evaluate_run(settings, tmp_path / "eval")
    (figures,) = read_metrics(tmp_path / "eval")
    assert (figures["step"], figures["top1"], figures["views"]) == (0, np.mean(right), 3)

    capsys.readouterr()
    assert plan("--checkpoint", file, "--json") == 0
    costs = json.loads(capsys.readouterr().out)
    assert (costs["frames"], costs["classes"], costs["adaptation"]) == (4, 10, settings.model.adaptation)
    assert costs["params_trainable"] == sum(
        math.prod(shape)
        for name, shape in peers.shapes(kind).items()
        if re.search("[Aa]dapter|temporal_embedding|ln_post|fc", name.replace("mlp.c_fc", ""))
    )

    loop.train(settings, tmp_path / "run")
    before, after = inti_jax.load(file), inti_jax.load(tmp_path / "run")
    moved = {
        path
        for path, value in after.params.items()
        if path in before.params and not np.array_equal(value, before.params[path])
    }
    assert "head.kernel" in moved
    assert ("tower.ln_post.scale" in moved) == (kind != "st_mlp")
    if kind != "zero_i2v":  # whose adapters are folded into the tower
        assert any(path.startswith("adapters.1.") for path in moved)
        assert not any(path.startswith("tower.blocks.") for path in moved)


def test_what_is_beside_the_weights_stays_inert(converted):
    converted("zero_i2v")
    assert not peers.LOADED


class _Harm:
    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.system, (f"touch {self.made}",)


@pytest.mark.parametrize("kind", ["aim", "st_mlp"])
def test_a_hostile_pickle_runs_nothing(kind, labels, tmp_path, capsys):
    path = peers.write(tmp_path / "m.pth", kind, peers.tensors(kind))
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    harm = pickle.dumps({"meta": _Harm(tmp_path / "made")})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, harm if name.endswith("data.pkl") else content)
    assert convert(path, "--out", tmp_path / "f.safetensors", "--labels", labels) == 1
    assert re.search(r"its pickle asks for \w+\.system", capsys.readouterr().err)
    assert not (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sources")
    for kind in ("aim", "zero_i2v", "st_mlp"):
        peers.write(directory / f"{kind}.pth", kind, peers.tensors(kind))
    return directory


AIM, ZERO, ST = "aim", "zero_i2v", "st_mlp"
WHOLE = {
    AIM: ("--scale", "0.5", *SAMPLING),
    ZERO: ("--scale", "0.5", "--shifts", "((-1,1),(1,1))", *SAMPLING),
    ST: ("--frames", "4", *SAMPLING),
}


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (AIM, (), r"AIM, whose .*: give --scale \(0\.5 for Kinetics-400, .* and --sampling"),
        (AIM, ("--scale", "0.5"), r"settings: give --sampling \(for Kinetics-400 dense:16 with 8 frames"),
        (AIM, (*WHOLE[AIM], "--frames", "8"), "temporal embedding of 4 frames: leave out --frames"),
        (AIM, (*WHOLE[AIM], "--shifts", "((-1,1),)"), "AIM, which has no shifts: leave out --shifts"),
        (AIM, ("--scale", "nan", *SAMPLING), "--scale is nan: it should be a positive number"),
        (AIM, ("--scale", "0.5", "--sampling", "dense"), "--sampling is 'dense': it should be uniform, or"),
        (AIM, (*WHOLE[AIM], "--pretrained", "CLIP"), "AIM with its own backbone: leave out --pretrained"),
        (AIM, (*WHOLE[AIM], "--activation", "gelu"), "a fine-tuned AIM: leave out --activation"),
        (ZERO, ("--scale", "0.5"), r"ZeroI2V, .*: give --shifts \(B/16: .* and --sampling"),
        (ZERO, ("--scale", "1", "--shifts", "1", *SAMPLING), "--shifts is '1': it should be pairs of"),
        (ZERO, ("--scale", "1", "--shifts", "((-1,9),)", *SAMPLING), r"zero_i2v\.shifts.*tiny has 4"),
        (ST, ("--pretrained", "CLIP"), r"ST-Adapter, .*: give --frames \(8, .* --sampling"),
        (ST, (*WHOLE[ST],), "without its backbone: give that, converted, with --pretrained"),
        (
            ST,
            (*WHOLE[ST], "--pretrained", "CLIP", "--scale", "1"),
            "ST-Adapter, which has no scale: leave out --scale",
        ),
        (ST, (*WHOLE[ST], "--pretrained", "OTHER"), "of width 32 with 2 layers, but .* has width 32 and 3"),
    ],
)
def test_a_missing_or_wrong_setting_is_refused_by_name(
    kind, given, message, sources, clip, labels, tmp_path, capsys
):
    other = dataclasses.replace(peers.SIZE, layers=3)
    paths = {"CLIP": clip, "OTHER": tmp_path / "other.safetensors"}
    if "OTHER" in given:
        write_tiny(paths["OTHER"], image=other)
    out = tmp_path / "f.safetensors"
    arguments = [paths.get(argument, argument) for argument in given]
    assert convert(sources / f"{kind}.pth", "--out", out, "--labels", labels, *arguments) == 1 + (
        "OTHER" not in given
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not out.exists()


def test_labels_are_as_many_as_classes(sources, labels, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("\n".join(labels.read_text().split("\n")[:9]))
    arguments = (sources / "aim.pth", "--out", tmp_path / "f.safetensors")
    assert convert(*arguments, *WHOLE[AIM]) == 2
    assert "fine-tuned AIM with 10 classes: give their names with --labels FILE" in capsys.readouterr().err
    assert convert(*arguments, *WHOLE[AIM], "--labels", tmp_path / "few.txt") == 1
    assert re.search(r"few\.txt has 9 labels, but .*aim\.pth has 10 classes", capsys.readouterr().err)


def test_tensors_that_are_not_the_methods_are_refused(labels, tmp_path, capsys):
    weights = peers.tensors("zero_i2v")
    del weights["backbone.transformer.resblocks.0.S_Adapter.D_fc2.bias"]
    weights["backbone.transformer.resblocks.1.T_Adapter_in_q.D_fc1.bias"] = torch.zeros(3)
    weights["backbone.transformer.resblocks.1.MLP_Adapter.D_fc1.weight"] = torch.zeros(9, 32)
    path = peers.write(tmp_path / "m.pth", "zero_i2v", weights)
    assert convert(path, "--out", tmp_path / "f.safetensors", "--labels", labels, *WHOLE[ZERO]) == 1
    line = capsys.readouterr().err
    assert "no place here: state_dict.backbone.transformer.resblocks.1.T_Adapter_in_q" in line
    assert "missing: state_dict.backbone.transformer.resblocks.0.S_Adapter.D_fc2.bias" in line
    assert "resblocks.1.MLP_Adapter.D_fc1.weight is [9, 32], not [8, 32]" in line


FOLDED = tuple(name for name in peers.shapes("zero_i2v") if "_Adapter" not in name)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("backbone.layer1.0.conv1.conv.net.weight", "backbone.conv1.conv.weight"), "TSM"),
        (("backbone.layer1.0.conv1.conv.weight",), "a ResNet, such as TSN"),
        (("backbone.slow_path.conv1.conv.weight",), "SlowFast"),
        (("backbone.transformer_layers.layers.0.attentions.0.attn.in_proj_weight",), "TimeSformer"),
        (("backbone.layers.0.blocks.0.attn.relative_position_bias_table",), "Video Swin"),
        (("backbone.blocks.0.attn.rel_pos_t",), "MViT"),
        (("backbone.blocks.0.attn.q_bias",), "VideoMAE"),
        ((*FOLDED, "backbone.transformer.dec.0.ln_1.weight"), "UniFormerV2"),
        (FOLDED, "ZeroI2V after weight_reparam.py"),
        (("backbone.blocks.0.T_Adapter.D_fc1.weight",), "AIM on another image transformer than CLIP's"),
        (("backbone.stem.weight",), "one of mmaction's models, but neither AIM nor ZeroI2V"),
    ],
)
def test_mmactions_other_models_are_called_what_they_are(names, what, labels, tmp_path, capsys):
    weights = dict.fromkeys((*names, "cls_head.fc_cls.weight"), torch.zeros(2, 2))
    torch.save({"meta": {}, "state_dict": weights}, tmp_path / "m.pth")
    arguments = (tmp_path / "m.pth", "--out", tmp_path / "f.safetensors")
    assert convert(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"m.pth is {what}" in line
    assert convert(*arguments, "--labels", labels) == 2
    assert "--labels is for a fine-tuned AIM, ST-Adapter or ZeroI2V, and" in capsys.readouterr().err


def test_where_another_file_is_meant_the_error_names_the_method(
    sources, converted, clip, motion_data, tmp_path
):
    for source, title in (("aim", "AIM"), ("zero_i2v", "ZeroI2V"), ("st_mlp", "ST-Adapter")):
        path = sources / f"{source}.pth"
        with pytest.raises(UserError, match=f"a fine-tuned {title}, not a CLIP: `python .* --labels FILE`"):
            inti_jax.load_clip(path)
        with pytest.raises(UserError, match=f"is a fine-tuned {title}, not a CLIP"):
            loop.train(tiny(motion_data, model__pretrained=str(path)), tmp_path / "run")
        with pytest.raises(UserError, match="convert a fine-tuned AIM, ST-Adapter or ZeroI2V with `python"):
            inti_jax.load(path)
    file = converted("aim")
    assert convert("--verify", file, "--against", sources / "aim.pth") == 1
    with pytest.raises(UserError, match="holds its own backbone: leave out --pretrained"):
        inti_jax.load(file, pretrained=clip)
    settings = settings_for(file, motion_data, "aim", clip)
    on_clip = dataclasses.replace(settings.model, pretrained=str(clip))
    with pytest.raises(ConfigError, match=r"its own backbone: set `model\.pretrained` to the same file"):
        loop.train(dataclasses.replace(settings, model=on_clip), tmp_path / "run")
    more = dataclasses.replace(settings, data=dataclasses.replace(settings.data, num_frames=8))
    with pytest.raises(ConfigError, match=r"has an embedding for `data\.num_frames` = 4, here it is 8"):
        loop.train(more, tmp_path / "run")
    other = dataclasses.replace(settings.model, aim=dataclasses.replace(settings.model.aim, scale=1.0))
    with pytest.raises(ConfigError, match=r"its `model\.aim\.scale` is 0\.5, here it is 1\.0"):
        loop.train(dataclasses.replace(settings, model=other), tmp_path / "run")


def found_by_shapes(kind, backbone, **sizes):
    """A published checkpoint's names and shapes, without its tensors."""
    prefix = "model." if kind.startswith("st") else "state_dict."
    arrays = {
        prefix + name: LazyArray(shape, np.dtype(np.float32), pytest.fail)
        for name, shape in peers.shapes(kind, BACKBONES[backbone], **sizes).items()
    }
    found = methods.find(ForeignCheckpoint(Path("m.pth"), arrays, torchscript=False))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "backbone", "frames", "given", "recipe"),
    [
        ("aim", "clip_vit_b16", 32, Given(None, "dense:4", 0.5), "k400_vit_b16:method=aim"),
        ("aim_2", "clip_vit_b16", 8, Given(None, "uniform", 1.0), "ssv2_vit_b16:method=aim"),
        (
            "zero_i2v",
            "clip_vit_l14",
            32,
            Given(None, "uniform", 1.0, "((-1,2),(1,2),(-2,1),(2,1),(-3,1))"),
            "ssv2_vit_l14:method=zero_i2v",
        ),
    ],
)
def test_published_checkpoints_are_the_models_of_the_recipes(kind, backbone, frames, given, recipe):
    """Of the published sizes, by shapes alone: no array is read."""
    size = BACKBONES[backbone]
    found = found_by_shapes(kind, backbone, frames=frames, inner=size.width // 4, classes=400)
    dataset = Dataset("kinetics400", "", "", tuple(map(str, range(400))))
    record = peer_file.describe(found, dataset, given, Path("f.safetensors"))
    assert len(peer_file.parameters_of(found, record)) == len(found.matched.parts)
    settings = config.load_config(f"{recipe},compression=none,frames={frames}")
    trained_file.check_fits(Path("f.safetensors"), record, RunRecord(settings, dataset, record.backbone))
    ours, theirs = record.config, settings
    assert ours.model.backbone == backbone
    assert [ours.data.sampling, ours.data.num_frames, ours.data.resolution] == [
        theirs.data.sampling,
        frames,
        224,
    ]
    assert ours.data.sampling == "uniform" or ours.data.stride == theirs.data.stride
    assert (ours.eval.clips, ours.eval.crops) == (theirs.eval.clips, theirs.eval.crops)
    np.testing.assert_allclose(record.backbone.mean, peers.MEAN, rtol=1e-12)
    np.testing.assert_allclose(record.backbone.std, peers.STD, rtol=1e-12)


@pytest.mark.parametrize(("kind", "before"), [("st_mlp", ["mlp"]), ("st_both", ["attn", "mlp"])])
def test_st_adapters_settings_follow_from_shapes(kind, before):
    found = found_by_shapes(kind, "clip_vit_b16", inner=384, classes=400)
    assert found.settings == {"width": 384, "before": before}
    assert (found.classes, found.width, found.layers, found.frames) == (400, 768, 12, None)


def test_any_bottleneck_comes_back_as_it_was():
    for width in (768, 1024, 96):
        for inner in range(1, width):
            assert int(methods.share(inner, width) * width) == inner
