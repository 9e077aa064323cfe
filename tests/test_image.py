import importlib.util
import re
import sys

import numpy as np
import pytest
import torch

from multihead import cli
from multihead.errors import SourceError
from multihead.image import PATCHES, load_model, read
from multihead.recording import load
from multihead.view import Picture, page
from tests.test_cli import run
from tests.view.reader import Page

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
datasets = pytest.importorskip("sklearn.datasets")

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 29}
PICTURE = {"image_size": 48, "patch_size": 8, "num_channels": 3}


def clip():
    words = {"vocab_size": 53, "max_position_embeddings": 59, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=SIZES | words, vision_config=SIZES | PICTURE, projection_dim=11)
    return transformers.CLIPModel(config)


def model_of(name, **options):
    return lambda: getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**SIZES, **PICTURE, **options)
    )


EDGE = {"height": 48, "width": 48}
SQUASHED = ("ViT", {"size": EDGE})
SHRUNK = ("DeiT", {"size": {"height": 56, "width": 56}, "crop_size": EDGE})
CROPPED = ("CLIP", {"size": {"shortest_edge": 48}, "crop_size": EDGE})
MARGIN = ("Bit", {"size": {"shortest_edge": 57}, "crop_size": EDGE})
REGISTERS = ["[CLS]", "[REG1]", "[REG2]", "[REG3]"]
FAMILIES = {
    "ViT": (model_of("ViT"), SQUASHED, ["[CLS]"]),
    "DeiT": (model_of("DeiT"), SHRUNK, ["[CLS]", "[DIST]"]),
    "DINOv2": (model_of("Dinov2"), MARGIN, ["[CLS]"]),
    "DINOv2 with registers": (model_of("Dinov2WithRegisters", num_register_tokens=3), MARGIN, REGISTERS),
    "CLIP": (clip, CROPPED, ["[CLS]"]),
    "CLIP's vision part": (model_of("CLIPVision"), CROPPED, ["[CLS]"]),
    "SigLIP's vision part": (model_of("SiglipVision"), ("Siglip", {"size": EDGE}), []),
}


def saved(folder, family):
    make, (processor, options), _ = FAMILIES[family]
    torch.manual_seed(1)
    make().save_pretrained(folder)
    getattr(transformers, f"{processor}ImageProcessorPil")(**options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def china():
    return datasets.load_sample_image("china.jpg")


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("vit"), "ViT")


def eager(folder, pixels):
    """(layer, heads, queries, keys), as transformers itself returns them."""
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        found = getattr(model, "vision_model", model).eval()(pixel_values=pixels, output_attentions=True)
    return torch.stack([weights[0] for weights in found.attentions])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_over_every_patch(family, tmp_path, china):
    saved(tmp_path, family)
    model = load_model(tmp_path)
    seen = read(china, model)
    before = FAMILIES[family][2]
    assert (seen.grid, seen.first) == ((6, 6), len(before))
    (tokens,) = seen.recording.texts[PATCHES]
    assert list(tokens[: seen.first]) == before
    assert list(tokens[seen.first :]) == [f"r{row}c{column}" for row in range(6) for column in range(6)]
    pixels = model.processor(Image.fromarray(china), return_tensors="pt")["pixel_values"]
    expected = eager(tmp_path, pixels)
    for layer, weights in enumerate(expected):
        torch.testing.assert_close(seen.recording.rows(layer, range(len(tokens))), weights, atol=1e-5, rtol=0)
    assert seen.recording.provenance["patches"] == f"6 × 6, after {len(before)} other tokens"
    assert seen.recording.provenance["model"] == tmp_path.name


def as_pixels(image):
    """A picture as bytes of 48 × 48 pixels."""
    return np.asarray(image.resize((48, 48), Image.Resampling.BOX)).astype(float)


@pytest.mark.parametrize("family", ["ViT", "DeiT", "DINOv2", "CLIP"])
def test_the_picture_is_what_the_model_saw(family, tmp_path, china):
    saved(tmp_path, family)
    model = load_model(tmp_path)
    seen = read(china, model)
    assert seen.image.size == (48 * 14, 48 * 14)
    raw = model.processor(Image.fromarray(china), do_normalize=False, do_rescale=False, return_tensors="np")
    shown = raw["pixel_values"][0].transpose(1, 2, 0).astype(float)
    error = np.abs(as_pixels(seen.image) - shown).mean()
    assert error < 12
    # the whole photograph is something else where the processor crops; one that is shifted by a patch always is
    if family != "ViT":
        assert np.abs(as_pixels(Image.fromarray(china)) - shown).mean() > 2 * error
    assert np.abs(np.roll(as_pixels(seen.image), 8, axis=1) - shown).mean() > 2 * error


def test_a_small_picture_is_shown_as_it_is_seen(vit):
    seen = read(np.full((20, 30, 3), 99, np.uint8), load_model(vit))
    assert seen.image.size == (48, 48)
    assert np.asarray(seen.image).min() == np.asarray(seen.image).max() == 99


def test_some_layers_heads_and_queries(vit, china):
    seen = read(china, load_model(vit), layers=[1], heads=[2, 0], queries=[0, 9])
    (layer,) = seen.recording.layers
    assert (layer.index, sorted(layer.heads), list(layer.queries)) == (1, [0, 2], [0, 9])
    whole = read(china, load_model(vit)).recording.rows(1, [0, 9], heads=[2])
    torch.testing.assert_close(seen.recording.rows(1, [0, 9], heads=[2]), whole)
    with pytest.raises(ValueError, match="layers 7 out of range"):
        read(china, load_model(vit), layers=[7])


def test_a_learned_query_that_pools_is_no_patch(tmp_path, china):
    saved(tmp_path, "SigLIP's vision part")
    seen = read(china, load_model(tmp_path))
    pooling = seen.recording.layers[-1]
    assert (pooling.query_text, pooling.key_text, pooling.sizes.queries) == ("pooling", PATCHES, 1)
    assert seen.recording.texts["pooling"] == [["[PROBE0]"]]
    assert seen.recording.rows(pooling.index, [0]).sum(-1).allclose(torch.ones(3, 1))
    document = Page(page(seen.recording, pictures={PATCHES: Picture(seen.image, seen.grid, seen.first)})).document
    assert [text["name"] for text in document["texts"]] == [PATCHES, "pooling"]
    assert document["start"]["text"] == 1


def test_a_model_that_has_no_grid_is_refused(tmp_path, china):
    config = transformers.SwinConfig(
        image_size=48, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=3
    )
    transformers.SwinModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="does not attend over one grid of 12 × 12 patches, but over 9 to 9 tokens"):
        read(china, load_model(tmp_path))


def test_a_processor_that_pillow_cannot_run_is_refused(tmp_path, vit):
    if importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is installed, so every processor runs")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((vit / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "DINOv3ViTImageProcessorFast"}')
    with pytest.raises(SourceError, match="does not run on Pillow alone: pip install torchvision"):
        load_model(tmp_path)


def test_another_size_than_the_models_is_refused(tmp_path, china):
    saved(tmp_path, "ViT")
    transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match=r"cannot look at what its image processor gives: .*64"):
        read(china, load_model(tmp_path))


def test_models_that_are_none_are_refused(tmp_path, vit):
    with pytest.raises(SourceError, match=r"holds no vision model: it has no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_bytes((vit / "config.json").read_bytes())
    with pytest.raises(SourceError, match=r"no preprocessor_config\.json or processor_config\.json"):
        load_model(tmp_path)
    with pytest.raises(SourceError, match=r"there is no model folder '\./nowhere'"):
        load_model("./nowhere")
    (tmp_path / "preprocessor_config.json").write_bytes((vit / "preprocessor_config.json").read_bytes())
    with pytest.raises(SourceError, match=r"the vision model .* cannot be opened"):
        load_model(tmp_path)


def test_a_model_of_words_is_no_vision_model(tmp_path, vit):
    config = transformers.BertConfig(**SIZES, vocab_size=53, max_position_embeddings=59)
    transformers.BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((vit / "preprocessor_config.json").read_bytes())
    with pytest.raises(SourceError, match="is no vision model"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("package", "words"),
    [("PIL", "Pillow.*multihead\\[pictures\\]"), ("transformers", "transformers.*multihead\\[hf\\]")],
)
def test_a_missing_package_is_named(package, words, monkeypatch, vit):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError, match=f"reading pictures needs {words}"):
        load_model(vit)


def test_a_name_that_nobody_has(monkeypatch):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    with pytest.raises(
        SourceError, match=re.escape("'nobody/vit' is no folder and is not in the cache, and offline mode")
    ):
        load_model("nobody/vit")


@pytest.fixture
def photograph(tmp_path, china, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    Image.fromarray(china).save(tmp_path / "china.jpg", quality=95)
    return tmp_path / "china.jpg"


def test_the_command_writes_a_page_over_the_picture(photograph, vit):
    told = run("view", "--image", photograph, "--model", vit, "--output", "page.html", "--save", "run.safetensors")
    assert (told.exit_code, told.stdout.strip()) == (0, "page.html"), told.output
    document = Page((photograph.parent / "page.html").read_text()).document
    assert document["texts"][0]["picture"]["grid"] == [6, 6]
    assert document["start"]["token"] == 0
    assert document["texts"][0]["tokens"][0] == "[CLS]"
    assert load(photograph.parent / "run.safetensors").texts["text"][0][1] == "r0c0"
    told = run(
        "view", "--image", photograph, "--model", vit, "--output", "page.html", "--token", "r2c3", "--layers", "1"
    )
    assert told.exit_code == 0, told.output
    document = Page((photograph.parent / "page.html").read_text()).document
    assert (document["start"]["token"], document["start"]["layer"], len(document["layers"])) == (16, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image", "china.jpg"], "--image needs a vision model"),
        (["some words", "--image", "china.jpg", "--model", "x"], "TEXT is about a text: leave one of them out"),
        (["run.safetensors", "--image", "china.jpg", "--model", "x"], "TEXT is about a text"),
        (["--image", "china.jpg", "--model", "x", "--file", "a.txt"], "--file is about a text"),
        (["--image", "china.jpg", "--model", "x", "--target", "a"], "--target is about a text"),
        (["--image", "china.jpg", "--model", "x", "--truncate"], "--truncate is about a text"),
        (["--image", "none.jpg", "--model", "x"], "none.jpg: No such file"),
        (["--image", "words.jpg", "--model", "x"], "words.jpg is no picture that Pillow can read"),
        (["--image", "china.jpg", "--model", "./x"], "there is no model folder './x'"),
        (["--image", "china.jpg", "--model", "x", "--output", "china.jpg"], "--output and --image are one file"),
    ],
)
def test_the_command_refuses(photograph, arguments, sentence):
    (photograph.parent / "words.jpg").write_text("words")
    told = run("view", *arguments)
    assert told.exit_code == 2
    assert sentence in told.stderr
    assert told.stderr.count("\n") == 1
    assert not list(photograph.parent.glob("*.html"))


def test_the_command_looks_into_no_pipe(photograph, vit):
    told = run("view", "--image", photograph, "--model", vit, "--output", "page.html", stdin="words of a pipe")
    assert told.exit_code == 0, told.output


def test_the_command_serves_the_picture(photograph, vit, monkeypatch):
    served = []
    monkeypatch.setattr("multihead.cli.serving.Door.serve", lambda door, *given: served.append(given))
    told = run("view", "--image", photograph, "--model", vit, "--serve")
    assert told.exit_code == 0, told.output
    ((recording, token, pictures),) = served
    assert (token(recording), pictures[PATCHES].grid) == (0, (6, 6))


def test_help_knows_pictures():
    assert "--image" in run("view", "--help").output
    assert cli.view.__doc__
