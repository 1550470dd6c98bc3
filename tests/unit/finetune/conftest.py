"""A training on a tiny LLaVA: a few records, with pictures and without, of one turn and of two."""

import json

import pytest
from PIL import Image
from safetensors.torch import save_file

from components.finetune.config import FinetuneConfig
from components.finetune.stage import run
from tests.support.checkpoints import change_config, copy_checkpoint, weights

WORDS = ("What is it?", "How many are there?", "Which colour has the largest one of them?")


def records():
    """Seven with pictures, three without."""
    found = []
    for number in range(10):
        turns = [
            {"from": "human", "value": WORDS[number % 3]},
            {"from": "gpt", "value": "It is red " * (number % 4 + 1)},
        ]
        if number % 4 == 0:
            turns += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
        image = {} if number % 4 == 3 or number == 9 else {"image": f"{number}.png"}
        found.append({"id": str(number), **image, "conversations": turns})
    return found


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """With pictures of 28 x 28 pixels, which become 2 x 2 tokens."""
    folder = copy_checkpoint("llava_hf", tmp_path_factory.mktemp("models") / "llava")
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    change_config(folder, vision_config={**vision, "image_size": 28}, image_seq_length=4)
    state = weights(folder)
    place = "vision_tower.embeddings.position_embedding.weight"
    save_file({**state, place: state[place][:5].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor |= {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def config(tmp_path, llava):
    """Settings of a training; names of outputs and whatever else differs are given."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(10):
        Image.new("RGB", (60, 40), (25 * number, 90, 255 - 25 * number)).save(images / f"{number}.png")
    (tmp_path / "selected.json").write_text(json.dumps(records()))

    def make(out="out", **changes):
        given = {
            "selected": str(tmp_path / "selected.json"),
            "image_root_uri": str(images),
            "model": str(llava),
            "lora_rank": 4,
            "lora_alpha": 8,
            "learning_rate": 1e-2,
            "projector_learning_rate": 1e-3,
            "batch_size": 4,
            "micro_batch_size": 2,
            "gradient_checkpointing": False,
            "tuned_model": str(tmp_path / out / "model"),
            "adapter": str(tmp_path / out / "adapter"),
            "report": str(tmp_path / out / "report.html"),
        }
        return FinetuneConfig(**{**given, **changes})

    return make


@pytest.fixture
def finetune(config, tmp_path):
    """Train; returns the stage's result and the loss of each step."""

    def start(out="out", **changes):
        result = run(config(out, **changes))
        told = json.loads((tmp_path / out / "adapter" / "training.json").read_text())
        return result, [step["loss"] for step in told["history"]]

    return start
