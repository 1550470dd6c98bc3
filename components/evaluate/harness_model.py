"""A model folder as lmms-eval's LLaVA reads it: links to its files, and what is missing among them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, normalizers
from transformers import PreTrainedTokenizerFast

from free2ds_common.errors import StageError
from free2ds_common.inference.model_folder import read_config, read_settings
from free2ds_common.inference.prompts import LLAVA_SYSTEM, PLACEHOLDER
from free2ds_common.inference.tokenizers import transformers_tokenizer

# lmms-eval's `llava_hf` knows two more; their pictures are no fixed square of tokens, which the own harness needs.
MODEL_TYPE = "llava"
# sentencepiece's word marker.
_MARKER = "▁"
_TEMPLATE = "chat_template.jinja"
_OLDER_TEMPLATE = "chat_template.json"
_PROCESSOR = "processor_config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_V1 = LLAVA_SYSTEM + " USER: {{ messages[0]['content'] }} ASSISTANT:"
# lmms-eval hands a template the picture's placeholder and the question as one text. Those of the hub want parts, and
# show nothing of a text.
_AS_PARTS = (
    "{% set messages = [{'role': 'user', 'content': [{'type': 'image'}, "
    "{'type': 'text', 'text': messages[0]['content'] | replace('" + PLACEHOLDER + "', '') | trim}]}] %}"
)


def require_llava(folder: Path) -> None:
    """Refuse a model that lmms-eval's LLaVA is not for.

    Raises:
        StageError: Its config says another type.
    """
    found = read_config(folder).get("model_type")
    if found != MODEL_TYPE:
        raise StageError(
            f"{folder}: model_type {found!r}, but harness lmms-eval is for {MODEL_TYPE!r} alone. Use harness own."
        )


def complete_model(folder: Path, target: Path, prompt: str) -> None:
    """Make a folder that AutoProcessor loads, with the prompt of the setting as its chat template.

    Args:
        folder: The model, which stays as it is.
        target: Gets links to its files; a new folder.
        prompt: v1 or chat, as the stage's setting.

    Raises:
        StageError: It has no tokenizer, or no chat template where one is wanted.
    """
    target.mkdir(parents=True)
    for path in folder.iterdir():
        (target / path.name).symlink_to(path.resolve())
    _complete_tokenizer(folder, target)
    template = _V1 if prompt == "v1" else _AS_PARTS + _own_template(folder)
    for name in (_TEMPLATE, _OLDER_TEMPLATE):
        (target / name).unlink(missing_ok=True)
    (target / _TEMPLATE).write_text(template, encoding="utf-8")
    _complete_processor(folder, target)


def _own_template(folder: Path) -> str:
    """The model's chat template.

    Raises:
        StageError: It has none.
    """
    found = transformers_tokenizer(folder).chat_template
    older = folder / _OLDER_TEMPLATE
    if found is None and older.is_file():
        found = read_settings(older).get("chat_template")
    if not isinstance(found, str):
        raise StageError(f"{folder}: no chat template. Use prompt v1.")
    return found


def _complete_processor(folder: Path, target: Path) -> None:
    """Say how many tokens a picture takes: LLaVA's first releases on the hub, and what was made of them, do not."""
    path = folder / _PROCESSOR
    told: dict[str, Any] = read_settings(path) if path.is_file() else {}
    if told.get("patch_size"):
        return
    config = read_config(folder)
    told |= {
        "processor_class": "LlavaProcessor",
        "image_token": PLACEHOLDER,
        "patch_size": config["vision_config"]["patch_size"],
        "vision_feature_select_strategy": config.get("vision_feature_select_strategy", "default"),
        # CLIP's class token.
        "num_additional_image_tokens": 1,
    }
    (target / _PROCESSOR).unlink(missing_ok=True)
    (target / _PROCESSOR).write_text(json.dumps(told, indent=1), encoding="utf-8")


def _sentencepiece_rules(path: Path) -> list[normalizers.Normalizer]:
    """What sentencepiece does to a text before it looks for tokens, as the model's own file says."""
    # Here, not at the top: it needs protobuf, which only the image with lmms-eval has.
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    told = model.normalizer_spec
    rules: list[normalizers.Normalizer] = []
    if told.precompiled_charsmap:
        rules.append(normalizers.Precompiled(told.precompiled_charsmap))
    if told.remove_extra_whitespaces:
        rules += [normalizers.Strip(), normalizers.Replace(Regex(" +"), " ")]
    return [*rules, normalizers.Prepend(_MARKER), normalizers.Replace(" ", _MARKER)]


def _complete_tokenizer(folder: Path, target: Path) -> None:
    """Give a folder that has `tokenizer.model` alone a `tokenizer.json` with the picture's placeholder in it.

    transformers' own conversion knows no placeholder, and drops the word marker of the text behind it, which LLaVA was
    trained with.

    Raises:
        StageError: The placeholder's number would not be the config's.
    """
    path = folder / "tokenizer.model"
    if (folder / "tokenizer.json").is_file() or not path.is_file():
        return
    loaded = transformers_tokenizer(folder)
    config = read_config(folder)
    backend = loaded.backend_tokenizer
    backend.normalizer = normalizers.Sequence(_sentencepiece_rules(path))
    backend.pre_tokenizer = None
    backend.add_special_tokens([AddedToken(PLACEHOLDER, special=True, normalized=False)])
    wanted = config.get("image_token_index", config.get("image_token_id"))
    if (found := backend.token_to_id(PLACEHOLDER)) != wanted:
        raise StageError(
            f"{folder}: {PLACEHOLDER} is token {found} of the tokenizer, but image_token_index of config.json is "
            f"{wanted}. Copy the whole model folder."
        )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=loaded.bos_token,
        eos_token=loaded.eos_token,
        unk_token=loaded.unk_token,
        model_max_length=loaded.model_max_length,
    )
    for name in _TOKENIZER:
        (target / name).unlink(missing_ok=True)
    whole.save_pretrained(target)
