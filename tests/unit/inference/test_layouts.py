"""One model in every layout that transformers writes or wrote: the same token ids, pictures, end of answers, map."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaTokenizer

from components.llava_attention.model import load_llava
from components.mgm_attention.model import load_mgm
from free2ds_common.errors import StageError
from free2ds_common.inference.auto import load_auto
from free2ds_common.inference.prompts import LLAVA_SYSTEM
from free2ds_common.inference.tokenizers import load_tokenizer
from tests.support.checkpoints import (
    CPU,
    FP32,
    answers_of,
    as_transformers_4,
    assert_same_answers,
    change_config,
    copy_checkpoint,
    llama_tokenizer,
    new_name,
    original_name,
    resave,
    share_embedding,
    weights,
    write_shards,
    write_single,
)


def long_answers(model):
    """Answers that EOS does not end, so that each has a map."""
    return answers_of(dataclasses.replace(model, eos_token_ids=frozenset()), max_new_tokens=2)


TEXTS = (
    "Which?",
    " Which one is it? ",
    "\nHow  many   are there?\n",
    "",
    "   ",
    "▁marked ▁▁ text",
    "</s> or <s> or <unk> or <pad> or <image>, written out",
    "<0x0A> is no byte",
    "日本の写真 ﬁne ½ café\u00a0é\t!",
    "a" * 300,
)


@pytest.fixture(scope="module", params=["llama's", "the library's defaults"])
def tokenizers(request, tmp_path_factory):
    """tokenizer.model, with a normaliser as Llama's and as the examples', and the tokenizer.json made from it."""
    folder = copy_checkpoint("llava_hf", tmp_path_factory.mktemp("original") / "llava")
    if request.param == "llama's":
        model = folder / "tokenizer.model"
        model.write_bytes(llama_tokenizer(model.read_bytes()))
    other = tmp_path_factory.mktemp("converted")
    AutoTokenizer.from_pretrained(folder).save_pretrained(other)
    return load_tokenizer(folder, "llama", 704), load_tokenizer(other, "llama", 704)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = copy_checkpoint("llava_hf", tmp_path_factory.mktemp("llama") / "llava")
    model = folder / "tokenizer.model"
    model.write_bytes(llama_tokenizer(model.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def wanted(llama):
    return long_answers(load_llava(llama, CPU, FP32))


def as_saved_today(llama, folder):
    return resave(llama, folder)


def as_saved_today_by_llamas_class(llama, folder):
    return resave(llama, folder, LlamaTokenizer)


def as_saved_by_4(llama, folder):
    resave(llama, folder)
    as_transformers_4(folder, legacy=False)
    return folder


def as_saved_by_4_the_older_way(llama, folder):
    resave(llama, folder)
    as_transformers_4(folder, legacy=True)
    return folder


def with_both_processor_files(llama, folder):
    resave(llama, folder)
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def with_numbers_for_sizes(llama, folder):
    """The first releases wrote 336 where later ones write an object."""
    resave(llama, folder)
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    del settings["image_processor_type"]
    settings |= {"size": 336, "crop_size": 336, "feature_extractor_type": "CLIPFeatureExtractor"}
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def in_bin_shards_with_the_modules_names(llama, folder):
    resave(llama, folder)
    write_shards(folder, {new_name(name): tensor for name, tensor in weights(folder).items()}, "bin")
    return folder


def with_only_the_text_configs_eos(llama, folder):
    resave(llama, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": null}')
    change_config(folder, eos_token_id=None)
    assert json.loads((folder / "config.json").read_text())["text_config"]["eos_token_id"] == 2
    return folder


LAYOUTS = [
    as_saved_today,
    as_saved_today_by_llamas_class,
    as_saved_by_4,
    as_saved_by_4_the_older_way,
    with_both_processor_files,
    with_numbers_for_sizes,
    in_bin_shards_with_the_modules_names,
    with_only_the_text_configs_eos,
]


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_same_map(llama, wanted, tmp_path, write):
    folder = write(llama, tmp_path / "other")
    assert not (folder / "tokenizer.model").exists()
    model = load_llava(folder, CPU, FP32)
    assert model.eos_token_ids == {2}
    assert_same_answers(long_answers(model), wanted)


@pytest.mark.parametrize("write", [as_saved_today, as_saved_by_4, as_saved_by_4_the_older_way])
def test_auto_reads_them_alike(llama, wanted, tmp_path, write):
    model = load_auto(write(llama, tmp_path / "other"), CPU, FP32, LLAVA_SYSTEM, "method")
    assert model.eos_token_ids == {2}
    assert_same_answers(long_answers(model), wanted)


def test_a_tokenizer_with_the_librarys_defaults_gives_the_same_map(tmp_path):
    folder = copy_checkpoint("llava_hf", tmp_path / "llava")
    other = resave(folder, tmp_path / "other")
    assert_same_answers(long_answers(load_llava(other, CPU, FP32)), long_answers(load_llava(folder, CPU, FP32)))


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_are_sentencepieces(tokenizers, text):
    wanted, found = tokenizers
    assert found.encode(text) == wanted.encode(text)


def test_special_tokens_are_sentencepieces(tokenizers):
    assert {(loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) for loaded in tokenizers} == {(1, 2, 0)}


def test_a_tokenizer_without_the_token_that_begins_a_prompt(llama, tmp_path):
    folder = resave(llama, tmp_path / "other")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<begin>"}))
    with pytest.raises(StageError, match="no <begin>, which begins every prompt of a Llama"):
        load_llava(folder, CPU, FP32)


@pytest.mark.parametrize("stored", ["head", "embedding", "both"])
@pytest.mark.parametrize("layout", ["llava_hf", "llava", "mgm", "auto"])
def test_one_matrix_for_both_ends(tmp_path, layout, stored):
    name = "llava_hf" if layout == "auto" else layout
    load = {
        "auto": lambda folder: load_auto(folder, CPU, FP32, "", "method"),
        "mgm": lambda folder: load_mgm(folder, CPU, FP32),
    }.get(layout, lambda folder: load_llava(folder, CPU, FP32))
    folder = copy_checkpoint(name, tmp_path / name)
    state, head, embedding = share_embedding(folder)
    change_config(folder, tie_word_embeddings=True)
    lacking = {"head": [embedding], "embedding": [head], "both": []}[stored]
    write_single(folder, {tensor: values.clone() for tensor, values in state.items() if tensor not in lacking})
    model = load(folder)
    matrix = state[head]
    assert torch.equal(model.decoder.get_input_embeddings().weight, matrix)
    torch.testing.assert_close(model.lm_head(torch.eye(96)), matrix.T)


@pytest.mark.parametrize(("name", "load"), [("llava_hf", load_llava), ("mgm", load_mgm)])
def test_a_shared_matrix_that_is_stored_twice_and_differs(tmp_path, name, load):
    folder = copy_checkpoint(name, tmp_path / name)
    change_config(folder, tie_word_embeddings=True)
    with pytest.raises(StageError, match=r"tie_word_embeddings is true, but .* are stored and differ"):
        load(folder, CPU, FP32)


@pytest.mark.parametrize(("name", "load"), [("llava_hf", load_llava), ("mgm", load_mgm)])
def test_a_missing_head_that_is_not_shared(tmp_path, name, load):
    folder = copy_checkpoint(name, tmp_path / name)
    write_single(folder, {tensor: values for tensor, values in weights(folder).items() if "lm_head" not in tensor})
    with pytest.raises(StageError, match=r"no weights for lm_head\.weight"):
        load(folder, CPU, FP32)


def test_two_names_for_one_layer(tmp_path):
    folder = copy_checkpoint("llava_hf", tmp_path / "llava")
    state = weights(folder)
    name = "language_model.model.norm.weight"
    write_single(folder, {**state, original_name(name): 2 * state[name]})
    with pytest.raises(StageError, match=r"norm\.weight and .*norm\.weight are weights of the same layer"):
        load_llava(folder, CPU, FP32)


def test_processor_files_that_differ(tmp_path):
    folder = copy_checkpoint("llava_hf", tmp_path / "llava")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    nested = {"image_processor": {**settings, "do_normalize": False}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    with pytest.raises(StageError, match=r"preprocessor_config\.json and processor_config\.json describe different"):
        load_llava(folder, CPU, FP32)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"crop_size": {"height": 224, "width": 224}},
            "pictures of 224 x 224 pixels, but the encoder's image_size is 336",
        ),
        ({"do_center_crop": False}, "pictures of 448 x 336 pixels"),
        ({"do_resize": False, "do_center_crop": False}, "pictures of 64 x 48 pixels"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor is another preprocessing than CLIP's"),
        ({"do_pad": True}, "do_pad is another preprocessing than CLIP's"),
        ({"size": "large"}, "cannot be loaded as CLIP's preprocessing"),
        ({"image_mean": [0.5]}, "cannot be loaded as CLIP's preprocessing"),
    ],
)
def test_another_preprocessing(tmp_path, entries, message):
    folder = copy_checkpoint("llava_hf", tmp_path / "llava")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    with pytest.raises(StageError, match=message):
        load_llava(folder, CPU, FP32)


@pytest.mark.parametrize("side", [700, 0, "768", True])
def test_another_size_of_mgms_second_encoder(tmp_path, side):
    folder = copy_checkpoint("mgm", tmp_path / "mgm")
    change_config(folder, image_size_aux=side)
    with pytest.raises(StageError, match=r"image_size_aux is .*, wanted a multiple of 96"):
        load_mgm(folder, CPU, FP32)


@pytest.mark.parametrize("layer", [4, -5, "last", [-2, 9]])
def test_a_vision_layer_that_clip_has_not(tmp_path, layer):
    folder = copy_checkpoint("mgm", tmp_path / "mgm")
    change_config(folder, mm_vision_select_layer=layer)
    with pytest.raises(StageError, match=r"the vision layer to take is .*, but CLIP has 3 layers"):
        load_mgm(folder, CPU, FP32)


@pytest.mark.parametrize("eos", [-1, 704, "</s>", [2, None], True])
def test_an_end_of_sequence_that_is_no_token(tmp_path, eos):
    folder = copy_checkpoint("llava_hf", tmp_path / "llava")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(StageError, match=r"eos_token_id is .*, wanted a token of the 704 in vocab_size"):
        load_llava(folder, CPU, FP32)


@pytest.mark.parametrize(("part", "kind"), [("text_config", "qwen2"), ("vision_config", "siglip_vision_model")])
def test_a_llava_of_other_parts(tmp_path, part, kind):
    folder = copy_checkpoint("llava_hf", tmp_path / "llava")
    found = json.loads((folder / "config.json").read_text())[part]
    found.pop("rope_parameters", None)
    change_config(folder, **{part: {**found, "model_type": kind}})
    with pytest.raises(StageError, match=r"a LLaVA of .* Use model_type auto"):
        load_llava(folder, CPU, FP32)


def test_a_tower_that_is_no_clip(tmp_path):
    folder = copy_checkpoint("llava", tmp_path / "llava")
    tower = next(path for path in folder.iterdir() if path.is_dir())
    change_config(tower, model_type="siglip_vision_model")
    with pytest.raises(StageError, match="model type siglip_vision_model, wanted CLIP's vision tower"):
        load_llava(folder, CPU, FP32)


def test_positions_as_transformers_5_writes_them_in_an_original_config(tmp_path):
    folder = copy_checkpoint("llava", tmp_path / "llava")
    change_config(
        folder, rope_theta=None, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    )
    frequencies = load_llava(folder, CPU, FP32).decoder.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 0.5 / 10000 ** (torch.arange(0, 24, 2) / 24))
