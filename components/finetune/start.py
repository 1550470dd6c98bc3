"""Puts the model together that LLaVA-1.5's training starts from: python -m components.finetune.start --help.

A published LLaVA-1.5 has learnt all of its data set already. To measure what a part of the data teaches, begin with the
decoder (Vicuna), the picture encoder (CLIP), and the projector of LLaVA's first training stage.
"""

import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from free2ds_common.checkpoints import resolve_model
from free2ds_common.cli import parse, run_command
from free2ds_common.errors import StageError
from free2ds_common.inference.model_folder import check_folder, read_config, refuse_pointer
from free2ds_common.inference.original_layout import (
    clip_config,
    clip_parameter_name,
    clip_processor,
    llama_config,
    require_picture_size,
    square_grid,
)
from free2ds_common.inference.tokenizers import load_tokenizer
from free2ds_common.inference.weights import WeightSource, load_model
from free2ds_common.settings import Output

logger = logging.getLogger(__name__)

_TOWER = "model.vision_tower."
_PROJECTOR = "mm_projector.bin"
_LAYERS = {"0": "linear_1", "2": "linear_2"}
# As in the published models: one row for the picture's token, and a number of rows that kernels like.
_ADDED_ROWS = 64
_TOKENIZER = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_MAX_FILE = "5GB"


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Put together the model that LLaVA-1.5's training starts from.

    Attributes:
        model: Output folder, in the Hugging Face layout.
        decoder: Folder, object-store URI or hub id of the language model.
        projector: The same of the projector: a folder with mm_projector.bin.
        vision_tower: The same of CLIP.
        revision: Branch, tag or commit of all three where they are hub ids.
    """

    model: Output
    decoder: str = "lmsys/vicuna-7b-v1.5"
    projector: str = "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5"
    vision_tower: str = "openai/clip-vit-large-patch14-336"
    revision: str = "main"


def put_together(config: StartConfig) -> None:
    """Write the model folder, in float16 as its parts are published.

    Raises:
        StageError: A part is missing, broken, or does not fit the others.
    """
    decoder, tower, projector = (
        Path(resolve_model(part, config.revision)) for part in (config.decoder, config.vision_tower, config.projector)
    )
    for folder in (decoder, tower):
        check_folder(folder)
    stored = read_config(decoder)
    if (architecture := (stored.get("architectures") or ["none"])[0]) != "LlamaForCausalLM":
        raise StageError(f"{decoder}: architecture {architecture}, wanted LlamaForCausalLM, Vicuna's.")
    if not (projector / _PROJECTOR).is_file():
        raise StageError(f"{projector}: no {_PROJECTOR}. Give the folder of LLaVA's first training stage.")
    refuse_pointer(projector / _PROJECTOR)
    text, vision = llama_config(decoder, stored), clip_config(tower)
    require_picture_size(tower, clip_processor(tower), vision.image_size)
    tokenizer = load_tokenizer(decoder, "llama", text.vocab_size)
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    whole = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=text.vocab_size,
        image_seq_length=square_grid(tower, vision) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    with tempfile.TemporaryDirectory(prefix="free2ds-start-") as scratch:
        # Under the name that checkpoints have.
        (Path(scratch) / "pytorch_model.bin").symlink_to((projector / _PROJECTOR).resolve())
        sources = [
            WeightSource(decoder, _decoder_name),
            WeightSource(tower, partial(clip_parameter_name, prefix=_TOWER), _TOWER),
            WeightSource(Path(scratch), _projector_name),
        ]
        build = partial(LlavaForConditionalGeneration, whole)
        model = load_model(decoder, build, sources, torch.device("cpu"), torch.float16)
    _add_rows(model, text.vocab_size)
    model.save_pretrained(config.model, max_shard_size=_MAX_FILE)
    for name in _TOKENIZER:
        if (decoder / name).is_file():
            shutil.copyfile(decoder / name, Path(config.model) / name)
    shutil.copyfile(tower / "preprocessor_config.json", Path(config.model) / "preprocessor_config.json")
    logger.info("%s: %s, %s and %s", config.model, config.decoder, config.projector, config.vision_tower)


def _decoder_name(stored: str) -> str:
    return re.sub(r"^model\.", "model.language_model.", stored)


def _projector_name(stored: str) -> str:
    return re.sub(
        r"^model\.mm_projector\.(\d)\.",
        lambda found: f"model.multi_modal_projector.{_LAYERS.get(found[1], found[1])}.",
        stored,
    )


@torch.no_grad()
def _add_rows(model: LlavaForConditionalGeneration, vocab_size: int) -> None:
    """Room for the picture's token: rows that are the mean of the others, so that no answer ever holds one."""
    model.resize_token_embeddings(vocab_size + _ADDED_ROWS, mean_resizing=False)
    for weights in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        weights[vocab_size:] = weights[:vocab_size].float().mean(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Put the model together; returns the exit code."""
    config = parse(StartConfig, argv, "python -m components.finetune.start")
    return run_command("finetune", config, put_together, lambda _: None)


if __name__ == "__main__":
    sys.exit(main())
