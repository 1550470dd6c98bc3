"""Other image-text-to-text models on either side: what fits is taken, what does not is told."""

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma2Config,
    LlavaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from free2ds_common.attention.auto import load_auto
from free2ds_common.attention.decode import Decoder, PictureGroup, Question
from free2ds_common.errors import StageError
from free2ds_common.images import decode_image

CPU, FP32 = torch.device("cpu"), torch.float32
SMALL = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=300, max_position_embeddings=512, pad_token_id=0, head_dim=8,
)  # fmt: skip
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
    """Write a LLaVA with the given decoder: 16 vision tokens of a 56 px picture."""

    def write(text_config, template=None, image_size=56):
        torch.manual_seed(0)
        vision = CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=image_size,
            patch_size=14,
        )  # fmt: skip
        config = LlavaConfig(vision_config=vision, text_config=text_config, image_token_index=290)
        model = AutoModelForImageTextToText.from_config(config)
        with torch.no_grad():
            for parameter in model.model.language_model.parameters():
                parameter.mul_(4)
        model.save_pretrained(tmp_path)
        size = {"height": image_size, "width": image_size}
        CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=size).save_pretrained(tmp_path)
        byte_tokenizer(template).save_pretrained(tmp_path)
        return tmp_path

    return write


@pytest.mark.parametrize("text_config", [Qwen2Config(**SMALL), MistralConfig(**SMALL, sliding_window=None)])
def test_grouped_heads_and_another_grid(save, text_config):
    model = load_auto(save(text_config), CPU, FP32, "System.", "method")
    assert (model.grid, model.positions, model.prompt_settings["style"]) == (4, 16, "method")
    picture = decode_image(_png(), "p")
    group = PictureGroup(
        model.preprocess(picture), (Question(0, model.prompt("Q?")), Question(1, model.prompt("Why?")))
    )
    answers = list(Decoder(model, 4, 2).answer([group]))
    assert len(answers) == 2
    assert all(answer.map is None or float(answer.map.sum()) == pytest.approx(1, abs=1e-5) for answer in answers)


def _png():
    import io

    from PIL import Image

    written = io.BytesIO()
    Image.effect_noise((80, 60), 90).convert("RGB").save(written, "PNG")
    return written.getvalue()


def test_chat_template(save):
    model = load_auto(save(Qwen2Config(**SMALL), TEMPLATE), CPU, FP32, "", "chat")
    tokenizer = byte_tokenizer()
    prompt = model.prompt("<image>\nHow many?")
    assert prompt.before == (tokenizer.bos_token_id, *tokenizer("<user>", add_special_tokens=False).input_ids)
    assert tokenizer.decode(prompt.after) == "How many?</user><bot>"


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "no chat template. Use prompt method"), ("<user>{{ messages }}", "does not show a picture as <image>")],
)
def test_unusable_chat_templates(save, template, message):
    with pytest.raises(StageError, match=message):
        load_auto(save(Qwen2Config(**SMALL), template), CPU, FP32, "", "chat")


def test_a_decoder_with_capped_scores_is_refused_by_the_probe(save):
    config = Gemma2Config(**SMALL, attn_logit_softcapping=0.5, sliding_window=8)
    with pytest.raises(StageError, match="is not plain causal attention|does not take the capture"):
        load_auto(save(config), CPU, FP32, "", "method")


def test_a_sliding_window_is_refused_by_the_probe(save):
    with pytest.raises(StageError, match="is not plain causal attention"):
        load_auto(save(MistralConfig(**SMALL, sliding_window=6)), CPU, FP32, "", "method")


def test_no_such_model(tmp_path):
    with pytest.raises(StageError, match="cannot be loaded as an image-text-to-text model"):
        load_auto(tmp_path, CPU, FP32, "", "method")
