"""What a training is tried on: a tiny LLaVA, ten records with pictures and without, of one turn and of two."""

import json

from PIL import Image
from safetensors.torch import save_file

from components.finetune.config import FinetuneConfig
from tests.support.checkpoints import change_config, copy_checkpoint, weights

WORDS = ("What is it?", "How many are there?", "Which colour has the largest one of them?")


def small_llava(folder):
    """With pictures of 28 x 28 pixels, which become 2 x 2 tokens."""
    copy_checkpoint("llava_hf", folder)
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    change_config(folder, vision_config={**vision, "image_size": 28}, image_seq_length=4)
    state = weights(folder)
    place = "vision_tower.embeddings.position_embedding.weight"
    save_file({**state, place: state[place][:5].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor |= {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def records():
    """Seven with pictures, three without."""
    found = []
    for number in range(10):
        answer = "It is red " * (number % 4 + 1)
        turns = [{"from": "human", "value": WORDS[number % 3]}, {"from": "gpt", "value": answer}]
        if number % 4 == 0:
            turns += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
        image = {} if number % 4 == 3 or number == 9 else {"image": f"{number}.png"}
        found.append({"id": str(number), **image, "conversations": turns})
    return found


def write_records(folder):
    """The records and their pictures."""
    images = folder / "images"
    images.mkdir()
    for number in range(10):
        Image.new("RGB", (60, 40), (25 * number, 90, 255 - 25 * number)).save(images / f"{number}.png")
    (folder / "selected.json").write_text(json.dumps(records()))


def training(folder, llava, out="out", **changes):
    """Settings of a training on the records in `folder`."""
    given = {
        "selected": str(folder / "selected.json"),
        "image_root_uri": str(folder / "images"),
        "model": str(llava),
        "lora_rank": 4,
        "lora_alpha": 8,
        "learning_rate": 1e-2,
        "projector_learning_rate": 1e-3,
        "batch_size": 4,
        "micro_batch_size": 2,
        "gradient_checkpointing": False,
        "tuned_model": str(folder / out / "model"),
        "adapter": str(folder / out / "adapter"),
        "report": str(folder / out / "report.html"),
    }
    return FinetuneConfig(**{**given, **changes})


def losses(folder, out="out"):
    """The loss of each step of a training that ended."""
    return [step["loss"] for step in history(folder, out)]


def history(folder, out="out"):
    """What training.json says of each step."""
    return json.loads((folder / out / "adapter" / "training.json").read_text())["history"]
