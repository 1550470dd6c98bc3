"""A model whose attention is not of interest: the stage around it is."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaModel

from components.llava_attention.config import LlavaAttentionConfig
from free2ds_common.datasets import DatasetWriter
from free2ds_common.inference.capture import ATTENTION_NAME
from free2ds_common.inference.model import VisionLanguageModel
from free2ds_common.inference.prompts import build_prompt, method_settings
from free2ds_common.schemas import RECORDS


class Letters:
    bos_token_id = 1

    def encode(self, text):
        return [3 + ord(letter) % 60 for letter in text]


@pytest.fixture
def config(tmp_path):
    """Of a stage whose model a test loads by itself; shard and pictures are the test's."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    return LlavaAttentionConfig(
        shard="",
        image_root_uri="",
        model=str(model),
        max_new_tokens=6,
        batch_size=4,
        attention=str(tmp_path / "attention"),
    )


@pytest.fixture
def load_tiny():
    """A loader as the stages have one: 24 x 24 vision tokens, a context of 900."""

    def load(folder, device, dtype):
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=64,
            max_position_embeddings=900,
        )
        decoder = LlamaModel(config).eval()
        decoder.config._attn_implementation = ATTENTION_NAME
        head = torch.nn.Linear(16, 64, bias=False)
        spread = torch.randn(3, 16)
        return VisionLanguageModel(
            decoder=decoder,
            lm_head=head,
            prompt=partial(build_prompt, system="S", tokenizer=Letters()),
            prompt_settings=method_settings("S"),
            preprocess=lambda picture: {"p": torch.from_numpy(np.array(picture.resize((24, 24)))).view(576, 3) / 255},
            encode_images=lambda pixels: pixels["p"].float() @ spread,
            grid=24,
            eos_token_ids=frozenset(range(2, 20)),
            context_length=900,
            preprocessing={"size": 24},
            folders=(folder,),
        )

    return load


@pytest.fixture
def write_shard(tmp_path):
    """Write a records/2 folder: (image or None, question or None) per record; pictures that exist are drawn."""

    def write(rows, draw=True):
        root = tmp_path / "images"
        root.mkdir(exist_ok=True)
        records = []
        for number, (image, question) in enumerate(rows, start=1):
            if image and draw:
                Image.effect_noise((40, 30), 90).convert("RGB").save(root / image)
            records.append(
                {
                    "unique_id": number,
                    "record_key": f"key{number}",
                    "position": number,
                    "id": None,
                    "image": image,
                    "source": "s",
                    "question": question,
                    "messages": [question or ""],
                    "raw": json.dumps({"id": str(number)}),
                }
            )
        with DatasetWriter(tmp_path / "shard", RECORDS) as writer:
            writer.write(records)
        return str(tmp_path / "shard"), str(root)

    return write
