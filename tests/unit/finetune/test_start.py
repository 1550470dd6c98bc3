"""The model that a training starts from, put together from its parts."""

import shutil

import pytest
import torch

from components.finetune.stage import run
from components.finetune.start import main
from components.llava_attention.model import load_llava
from examples.models import CLIP_NAME
from tests.support.checkpoints import CPU, FP32, change_config, copy_checkpoint, picture, remove_weights, weights


@pytest.fixture
def parts(tmp_path):
    """Vicuna, CLIP and the projector, as folders of their own, of one original LLaVA; and that LLaVA."""
    llava = copy_checkpoint("llava", tmp_path / "whole")
    state = weights(llava)
    decoder, projector = tmp_path / "decoder", tmp_path / "projector"
    shutil.copytree(llava, decoder, ignore=shutil.ignore_patterns(CLIP_NAME))
    remove_weights(decoder)
    change_config(decoder, architectures=["LlamaForCausalLM"])
    kept = {name: tensor for name, tensor in state.items() if "mm_projector" not in name and "vision_tower" not in name}
    torch.save(kept, decoder / "pytorch_model.bin")
    projector.mkdir()
    torch.save({name: state[name] for name in state if "mm_projector" in name}, projector / "mm_projector.bin")
    return decoder, projector, llava / CLIP_NAME, llava


@pytest.fixture
def make(parts, tmp_path, capsys):
    """Put them together; returns the exit code and what stderr says."""
    decoder, projector, tower, _ = parts

    def put_together():
        arguments = [
            "--decoder",
            decoder,
            "--projector",
            projector,
            "--vision-tower",
            tower,
            "--model",
            tmp_path / "made",
        ]
        return main([str(argument) for argument in arguments]), capsys.readouterr().err

    return put_together


@torch.no_grad()
def test_it_is_the_model_of_its_parts(make, parts, tmp_path):
    assert make()[0] == 0
    made, whole = load_llava(tmp_path / "made", CPU, FP32), load_llava(parts[3], CPU, FP32)
    assert made.prompt("What?") == whole.prompt("What?")
    assert made.eos_token_ids == whole.eos_token_ids
    pixels = {"pixel_values": whole.preprocess(picture())["pixel_values"][None]}
    # Stored in float16.
    torch.testing.assert_close(made.encode_images(pixels), whole.encode_images(pixels), atol=5e-2, rtol=5e-2)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        found = weights(tmp_path / "made")[f"language_model.{name}"].float()
        wanted = weights(parts[3])[name].half().float()
        rows = len(wanted)
        assert torch.equal(found[:rows], wanted)
        torch.testing.assert_close(found[rows:], wanted.mean(0).expand(64, -1), atol=1e-3, rtol=1e-2)


def test_it_can_be_trained(make, config, tmp_path):
    assert make()[0] == 0
    result = run(config(model=str(tmp_path / "made"), max_steps=1))
    assert result.metrics["first_loss"] > 0


def another_decoder(decoder, projector):
    change_config(decoder, architectures=["MistralForCausalLM"])


def no_projector(decoder, projector):
    (projector / "mm_projector.bin").unlink()


def another_projector(decoder, projector):
    torch.save({"model.mm_projector.4.weight": torch.ones(2, 2)}, projector / "mm_projector.bin")


def a_pointer(decoder, projector):
    (projector / "mm_projector.bin").write_text("version https://git-lfs.github.com/spec/v1\n")


def no_decoder_weights(decoder, projector):
    remove_weights(decoder)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (another_decoder, "architecture MistralForCausalLM, wanted LlamaForCausalLM"),
        (no_projector, "no mm_projector.bin. Give the folder"),
        (another_projector, "model.mm_projector.4.weight in the checkpoint, but not in the model"),
        (a_pointer, "a Git LFS pointer"),
        (no_decoder_weights, "no weights"),
    ],
)
def test_parts_that_are_not_right(make, parts, harm, message):
    harm(*parts[:2])
    code, said = make()
    assert code == 2
    assert message in said
