"""Other image-text-to-text models on either side: what fits is taken, what does not is told."""

import json

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma2Config,
    GemmaConfig,
    LlavaConfig,
    MistralConfig,
    PaliGemmaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from free2ds_common.errors import StageError
from free2ds_common.inference.auto import load_auto
from free2ds_common.inference.capture import Pass
from free2ds_common.inference.generation import AnswerGenerator, PictureGroup, Question
from free2ds_common.inference.prompts import method_settings
from free2ds_common.pictures import decode_picture

CPU, FP32 = torch.device("cpu"), torch.float32
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "head_dim": 8,
}
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=14)
TEMPLATE = (
    "{% for message in messages %}<user>{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}</user>{% endfor %}<bot>"
)


def byte_tokenizer(template=None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def save(tmp_path):
    """Write a LLaVA with the given decoder, 16 vision tokens of a 56 px picture, or another model given its config."""

    def write(config, template=None, image_size=56, sharpness=4):
        torch.manual_seed(0)
        if not hasattr(config, "text_config"):
            vision = CLIPVisionConfig(**VISION, image_size=image_size)
            config = LlavaConfig(vision_config=vision, text_config=config, image_token_index=290)
        model = AutoModelForImageTextToText.from_config(config)
        with torch.no_grad():
            for parameter in model.model.language_model.parameters():
                parameter.mul_(sharpness)
        model.save_pretrained(tmp_path)
        size = {"height": image_size, "width": image_size}
        CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=size).save_pretrained(tmp_path)
        byte_tokenizer(template).save_pretrained(tmp_path)
        return tmp_path

    return write


@pytest.mark.parametrize("text_config", [Qwen2Config(**SMALL), MistralConfig(**SMALL, sliding_window=None)])
def test_grouped_heads_and_another_grid(save, text_config):
    model = load_auto(save(text_config), CPU, FP32, "System.", "method")
    assert (model.grid, model.num_vision_tokens, model.context_length) == (4, 16, 512)
    picture = decode_picture(_png(), "p")
    group = PictureGroup(
        model.preprocess(picture), (Question(0, model.prompt("Q?")), Question(1, model.prompt("Why?")))
    )
    answers = list(AnswerGenerator(model, 4, 2).generate([group]))
    assert len(answers) == 2
    assert all(answer.map is None or float(answer.map.sum()) == pytest.approx(1, abs=1e-5) for answer in answers)


def _png():
    import io

    from PIL import Image

    written = io.BytesIO()
    Image.effect_noise((80, 60), 90).convert("RGB").save(written, "PNG")
    return written.getvalue()


@pytest.mark.parametrize("system", ["System.", "Another one."])
def test_the_methods_prompt_has_the_given_system_text(save, system):
    model = load_auto(save(Qwen2Config(**SMALL)), CPU, FP32, system, "method")
    assert byte_tokenizer().decode(model.prompt("Why?").before) == f"<s>{system} USER: "
    assert model.prompt_settings == method_settings(system)


def test_chat_settings_name_no_system_text(save):
    model = load_auto(save(Qwen2Config(**SMALL), TEMPLATE), CPU, FP32, "System.", "chat")
    assert model.prompt_settings == {"style": "chat"}


@pytest.mark.parametrize(("generation", "wanted"), [({"eos_token_id": 5}, {5}), ({"eos_token_id": [5, 7]}, {5, 7})])
def test_end_of_sequence_is_the_generation_configs(save, generation, wanted):
    folder = save(Qwen2Config(**SMALL, eos_token_id=3))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert load_auto(folder, CPU, FP32, "", "method").eos_token_ids == wanted


def test_end_of_sequence_is_else_the_decoders(save):
    folder = save(Qwen2Config(**SMALL, eos_token_id=3))
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert load_auto(folder, CPU, FP32, "", "method").eos_token_ids == {3}


def test_chat_template(save):
    model = load_auto(save(Qwen2Config(**SMALL), TEMPLATE), CPU, FP32, "", "chat")
    tokenizer = byte_tokenizer()
    prompt = model.prompt("<image>\nHow many?")
    assert prompt.before == (tokenizer.bos_token_id, *tokenizer("<user>", add_special_tokens=False).input_ids)
    assert tokenizer.decode(prompt.after) == "How many?</user><bot>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no usable chat template .*. Use prompt method"),
        ("{{ messages", "no usable chat template .*. Use prompt method"),
        ("{{ 'USER: ' + messages[0].content }}", "no usable chat template .*. Use prompt method"),
        ("<user>{{ messages }}", "does not show a picture as <image>"),
    ],
)
def test_unusable_chat_templates(save, template, message):
    with pytest.raises(StageError, match=message):
        load_auto(save(Qwen2Config(**SMALL), template), CPU, FP32, "", "chat")


def test_the_processors_older_template_file(save):
    folder = save(Qwen2Config(**SMALL))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE.replace("<user>", "<older>")}))
    model = load_auto(folder, CPU, FP32, "", "chat")
    assert byte_tokenizer().decode(model.prompt("Why?").before) == "<s><older>"


def test_the_newer_template_file_goes_before_the_older(save):
    folder = save(Qwen2Config(**SMALL), TEMPLATE)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE.replace("<user>", "<older>")}))
    model = load_auto(folder, CPU, FP32, "", "chat")
    assert byte_tokenizer().decode(model.prompt("Why?").before) == "<s><user>"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
class TestEveryDtype:
    """In bfloat16, two right ways are more than 5 % apart by their roundings alone."""

    def test_the_right_capture_is_accepted_and_leaves_the_model_as_it_was(self, save, dtype):
        folder = save(Qwen2Config(**SMALL))
        decoder = load_auto(folder, CPU, dtype, "", "method").decoder
        stored = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).model.language_model
        for found, wanted in zip(decoder.parameters(), stored.parameters(), strict=True):
            assert found.dtype == dtype
            assert torch.equal(found.to_dense() if found.is_mkldnn else found, wanted)

    @pytest.mark.parametrize("factor", [0, 0.9])
    def test_a_wrong_capture_of_small_weights_is_refused(self, save, dtype, factor, monkeypatch):
        """576 vision tokens with about 1/592 each, as a picture of the method has them."""
        right = Pass._last_row_weights

        def wrong(self, *arguments):
            weights = right(self, *arguments)
            self.row_sum *= factor
            return weights

        config = Qwen2Config(**{**SMALL, "max_position_embeddings": 1024})
        folder = save(config, image_size=336, sharpness=1)
        monkeypatch.setattr(Pass, "_last_row_weights", wrong)
        with pytest.raises(StageError, match="not plain causal attention"):
            load_auto(folder, CPU, dtype, "", "method")

    def test_capped_scores_are_refused(self, save, dtype):
        config = Gemma2Config(**SMALL, attn_logit_softcapping=0.5, sliding_window=512)
        with pytest.raises(StageError, match=r"differs from the model's own .* not plain causal attention"):
            load_auto(save(config), CPU, dtype, "", "method")


@pytest.mark.parametrize(
    "text_config",
    [
        MistralConfig(**SMALL, sliding_window=100),
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=100, max_window_layers=1),
    ],
)
def test_a_window_longer_than_the_probe_is_refused(save, text_config):
    with pytest.raises(StageError, match="sliding_window is 100 of 512 tokens: it is not plain causal attention"):
        load_auto(save(text_config), CPU, FP32, "", "method")


@pytest.mark.parametrize(
    "text_config",
    [
        MistralConfig(**SMALL, sliding_window=512),
        Qwen2Config(**SMALL, use_sliding_window=False, sliding_window=100),
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=100, max_window_layers=2),
    ],
)
def test_a_window_that_hides_nothing_is_accepted(save, text_config):
    assert load_auto(save(text_config), CPU, FP32, "", "method").grid == 4


def test_two_way_attention_over_the_picture_is_refused(save):
    vision = SiglipVisionConfig(**VISION, image_size=56)
    config = PaliGemmaConfig(
        vision_config=vision, text_config=GemmaConfig(**SMALL), image_token_index=290, projection_dim=32
    )
    with pytest.raises(StageError, match=r"PaliGemma.* tells picture tokens apart \(token_type_ids\)"):
        load_auto(save(config), CPU, FP32, "", "method")


def no_config(folder):
    (folder / "config.json").unlink()


def another_model(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')


def another_width(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 40
    (folder / "config.json").write_text(json.dumps(config))


def another_depth(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(num_hidden_layers=3, layer_types=["full_attention"] * 3)
    (folder / "config.json").write_text(json.dumps(config))


def torn_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not safetensors")


def broken_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


def broken_generation_config(folder):
    (folder / "generation_config.json").write_text("{")


def no_generation_config_object(folder):
    (folder / "generation_config.json").write_text("[]")


def another_type(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "message", "prompt"),
    [
        (no_config, "no config.json", "method"),
        (another_model, "cannot be loaded as an image-text-to-text model", "method"),
        (another_width, r"mlp.*weight \(32, 32\) instead of \(.*40.*\).*do not fit config.json", "method"),
        (another_depth, "no weights for model.language_model.layers.2.* more. The checkpoint is incomplete", "method"),
        (torn_weights, "model.safetensors: cannot be read as weights", "method"),
        (broken_index, "model.safetensors.index.json is no JSON object", "method"),
        (no_tokenizer, "no tokenizer.model or tokenizer.json", "method"),
        (no_tokenizer, "no tokenizer .wanted tokenizer.json, tokenizer.model, vocab.txt, ", "chat"),
        (broken_tokenizer, "tokenizer.json is no JSON object", "method"),
        (broken_tokenizer, "cannot be read as a tokenizer", "chat"),
        (broken_generation_config, "generation_config.json is no JSON object", "method"),
        (no_generation_config_object, "generation_config.json is no JSON object", "method"),
        (another_type, "cannot be loaded as an image-text-to-text model", "method"),
    ],
)
def test_folders_that_are_not_right(save, harm, message, prompt):
    folder = save(Qwen2Config(**SMALL), TEMPLATE)
    harm(folder)
    with pytest.raises(StageError, match=message) as caught:
        load_auto(folder, CPU, FP32, "", prompt)
    assert "\n" not in str(caught.value)
