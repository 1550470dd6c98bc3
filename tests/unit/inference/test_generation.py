"""The batched, shared, fused path against a plain loop with full attention matrices, on a random tiny decoder."""

import dataclasses
import gc
import weakref

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from free2ds_common.inference import capture, generation
from free2ds_common.inference.capture import ATTENTION_NAME
from free2ds_common.inference.generation import AnswerGenerator, PictureGroup, Question
from free2ds_common.inference.maps import aggregate_steps
from free2ds_common.inference.model import VisionLanguageModel
from free2ds_common.inference.prompts import Prompt

GRID, HIDDEN, VOCABULARY, EOS = 3, 32, 40, 2
MAX_NEW_TOKENS = 8


def tiny(key_value_heads=4, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # peaked attention and varied answers
    projection = torch.randn(4, GRID * GRID * HIDDEN)
    wrapped = VisionLanguageModel(
        decoder=model.model,
        lm_head=model.lm_head,
        prompt=None,
        prompt_settings={},
        preprocess=None,
        encode_images=lambda pixels: (pixels["pixel_values"] @ projection).view(-1, GRID * GRID, HIDDEN),
        grid=GRID,
        eos_token_ids=frozenset([EOS, 5, 6, 7]),
        context_length=128,
        preprocessing={},
        folders=(),
    )
    return model, wrapped


def groups_of(questions_per_picture, seed=1):
    generator = torch.Generator().manual_seed(seed)
    groups, index = [], 0
    for count in questions_per_picture:
        questions = []
        for number in range(count):
            length = int(torch.randint(1, 9, (1,), generator=generator))
            after = torch.randint(8, VOCABULARY, (length,), generator=generator)
            # Every fourth question stands before the picture, so its prefix is not shared.
            before = (1, 9, 10) if number % 4 != 3 else (1, 9, 10, 11 + number)
            questions.append(Question(index, Prompt(before, tuple(after.tolist()))))
            index += 1
        groups.append(PictureGroup({"pixel_values": torch.randn(4, generator=generator)}, tuple(questions)))
    return groups


@torch.inference_mode()
def plain(model, wrapped, group, question):
    """One record, eager attention with every matrix kept, the whole sequence again at every step."""
    model.config._attn_implementation = wrapped.decoder.config._attn_implementation = "eager"
    features = wrapped.encode_images({"pixel_values": group.pixels["pixel_values"][None]})[0]
    embed = wrapped.decoder.embed_tokens
    start = len(question.prompt.before)
    inputs = torch.cat(
        [embed(torch.tensor(question.prompt.before)), features, embed(torch.tensor(question.prompt.after))]
    )
    tokens, steps = [], []
    while len(tokens) < MAX_NEW_TOKENS and (not tokens or tokens[-1] not in wrapped.eos_token_ids):
        out = model(inputs_embeds=inputs[None], output_attentions=True)
        rows = torch.stack([layer[0, :, -1] for layer in out.attentions])
        steps.append(rows.mean(dim=(0, 1))[start : start + wrapped.num_vision_tokens])
        tokens.append(int(out.logits[0, -1].argmax()))
        inputs = torch.cat([inputs, embed(torch.tensor(tokens[-1:]))])
    return tokens, aggregate_steps(torch.stack(steps))


@pytest.fixture(params=[4, 2], ids=["full heads", "grouped heads"])
def models(request):
    return tiny(request.param)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_equals_the_plain_loop(models, batch_size, share):
    model, wrapped = models
    groups = groups_of([1, 4, 2, 9, 1, 5])
    wanted = {q.index: plain(model, wrapped, group, q) for group in groups for q in group.questions}
    assert len({len(tokens) for tokens, _ in wanted.values()}) > 3, "answers should differ in length"
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    found = list(AnswerGenerator(wrapped, MAX_NEW_TOKENS, batch_size, share).generate(groups))
    assert sorted(answer.index for answer in found) == sorted(wanted)
    for answer in found:
        tokens, aggregated = wanted[answer.index]
        assert list(answer.tokens) == tokens
        if aggregated is None:
            assert (answer.map, answer.outcome) == (None, "eos_only")
        else:
            assert answer.outcome == "ok"
            torch.testing.assert_close(answer.map, aggregated, rtol=0, atol=1e-6)


def test_flash_attention_gives_the_same(models, monkeypatch):
    """What the package computes, written out: the GPU's path with everything but its kernel."""
    calls = []

    def written_out(query, keys, values, softmax_scale, causal):
        calls.append((query.shape[1], keys.shape[1]))
        groups = query.shape[2] // keys.shape[2]
        query, keys, values = (held.transpose(1, 2) for held in (query, keys, values))
        keys, values = (held.repeat_interleave(groups, dim=1) for held in (keys, values))
        allowed = torch.ones(query.shape[2], keys.shape[2]).tril(keys.shape[2] - query.shape[2]).bool()
        scores = (query @ keys.transpose(2, 3) * softmax_scale).masked_fill(~allowed, float("-inf"))
        assert causal
        return (scores.softmax(-1) @ values).transpose(1, 2)

    _, wrapped = models
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1, 4, 2])
    wanted = {answer.index: answer for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 8).generate(groups)}
    monkeypatch.setattr(capture, "flash_attn_func", written_out)
    assert not capture.flash_attention_fits(torch.zeros(1))  # on the CPU never
    monkeypatch.setattr(capture, "flash_attention_fits", lambda query: True)
    for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 8).generate(groups):
        assert answer.tokens == wanted[answer.index].tokens
        if answer.map is not None:
            torch.testing.assert_close(answer.map, wanted[answer.index].map, rtol=0, atol=1e-6)
    assert {keys > queries for queries, keys in calls} == {True, False}


def test_finished_answers_leave_at_once():
    """Rows computed = tokens generated after the first, however long the longest answer is."""
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    rows = []
    hook = wrapped.decoder.register_forward_hook(
        lambda module, arguments, options, output: rows.append(options["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    answers = list(AnswerGenerator(wrapped, MAX_NEW_TOKENS, 16).generate(groups_of([1] * 16)))
    hook.remove()
    decoded = sum(count for count, tokens in rows if tokens == 1)
    assert decoded == sum(len(answer.tokens) - 1 for answer in answers)


def test_a_large_group_does_not_wait_for_the_slowest_answer():
    """Two pictures with as many questions as rows; one answer of the first is long, the second's start meanwhile."""
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([8, 8])
    lengths = {
        answer.index: len(answer.tokens) for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 8).generate(groups)
    }
    longest = max(range(8), key=lengths.__getitem__)
    assert lengths[longest] > 2 + min(lengths[index] for index in range(8, 16))
    order = [answer.index for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 8).generate(groups)]
    assert min(order.index(index) for index in range(8, 16)) < order.index(longest)


def test_non_finite_attention_is_an_outcome_and_spreads_to_no_one():
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1, 1, 1, 1, 1, 1])
    clean = {answer.index: answer for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 2).generate(groups)}
    broken = [*groups]
    broken[1] = PictureGroup({"pixel_values": torch.full((4,), float("nan"))}, groups[1].questions)
    found = {answer.index: answer for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 2).generate(broken)}
    assert (found[1].outcome, found[1].map) == ("non_finite", None)
    for index in (0, 2, 3, 4, 5):
        assert found[index].tokens == clean[index].tokens
        assert found[index].outcome == clean[index].outcome


def test_a_shorter_answer_in_a_row_that_was_not_finite():
    """The first row ends at once with NaN; the shortest moves there while a long one keeps the batch wide."""
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    wrapped = dataclasses.replace(wrapped, eos_token_ids=frozenset([0]))  # the largest of nothing but NaN
    prompts = [Prompt((1, 9, 10), (11,) * length) for length in (20, 20, 2)]
    pixels = [torch.full((4,), float("nan")), torch.ones(4), torch.full((4,), 2.0)]
    groups = [
        PictureGroup({"pixel_values": values}, (Question(index, prompt),))
        for index, (values, prompt) in enumerate(zip(pixels, prompts, strict=True))
    ]
    found = {answer.index: answer for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 3).generate(groups)}
    (alone,) = AnswerGenerator(wrapped, MAX_NEW_TOKENS, 1).generate(groups[2:])
    assert (found[0].tokens, found[0].outcome) == ((0,), "non_finite")
    assert (found[2].tokens, found[2].outcome) == (alone.tokens, "ok")
    torch.testing.assert_close(found[2].map, alone.map, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 5])
def test_longest_answer(max_new_tokens):
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    endless = dataclasses.replace(wrapped, eos_token_ids=frozenset())
    answers = AnswerGenerator(endless, max_new_tokens, 3).generate(groups_of([1, 2, 4]))
    assert [len(answer.tokens) for answer in answers] == [max_new_tokens] * 7


@pytest.mark.parametrize("count", [1, 3])
def test_answers_end_with_any_of_the_eos_tokens(count):
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1, 4, 2, 9, 1, 5])
    endless = dataclasses.replace(wrapped, eos_token_ids=frozenset())
    whole = {answer.index: answer.tokens for answer in AnswerGenerator(endless, 20, 8).generate(groups)}
    eos = sorted({token for tokens in whole.values() for token in tokens[3:]})[:count]
    assert len(eos) == count
    ending = dataclasses.replace(wrapped, eos_token_ids=frozenset(eos))
    ended = 0
    for answer in AnswerGenerator(ending, 20, 8).generate(groups):
        tokens = whole[answer.index]
        last = next((number for number, token in enumerate(tokens) if token in eos), 19)
        assert answer.tokens == tokens[: last + 1]
        ended += last < 19
    assert ended > 0


def test_memory_without_values_reaches_no_answer(models, monkeypatch):
    """Slots start as whatever the memory holds, here NaN, also after they have grown."""
    _, wrapped = models
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1, 4, 2, 9, 1, 5])
    wanted = {answer.index: answer for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 6).generate(groups)}
    monkeypatch.setattr(capture.KeyValueCache, "GROWTH", 1)
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *shape: self.new_full(shape, float("nan")), raising=False
    )
    for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 6).generate(groups):
        assert (answer.tokens, answer.outcome) == (wanted[answer.index].tokens, wanted[answer.index].outcome)
        assert answer.map is None or torch.isfinite(answer.map).all()


def test_out_of_memory_halves_the_batch_and_loses_nothing(caplog):
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([3, 4, 2, 1, 5])
    wanted = {answer.index: answer.tokens for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 64).generate(groups)}

    def refuse(module, arguments, options):
        if options["inputs_embeds"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = wrapped.decoder.register_forward_pre_hook(refuse, with_kwargs=True)
    generator = AnswerGenerator(wrapped, MAX_NEW_TOKENS, 8)
    found = list(generator.generate(groups))
    hook.remove()
    assert generator.batch_size == 2
    assert sorted((answer.index, answer.tokens) for answer in found) == sorted(wanted.items())
    assert "out of memory: going on with 2 answers at a time" in caplog.text


def test_out_of_memory_on_the_way_to_the_decoder_loses_nothing():
    """While pictures are encoded, and while a finished answer is put together."""
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1] * 12)
    wanted = {answer.index: answer.tokens for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 4).generate(groups)}
    calls = []

    def encode(pixels):
        calls.append(len(pixels["pixel_values"]))
        if len(calls) in (2, 3, 4):  # together, and in halves down to one
            raise torch.OutOfMemoryError("CUDA out of memory")
        return wrapped.encode_images(pixels)

    generator = AnswerGenerator(dataclasses.replace(wrapped, encode_images=encode), MAX_NEW_TOKENS, 4)
    found = [(answer.index, answer.tokens) for answer in generator.generate(groups)]
    assert sorted(found) == sorted(wanted.items())
    assert generator.batch_size == 2
    assert calls[1:4] == [4, 2, 1]
    assert max(calls[4:]) == 2

    generator, aggregated = AnswerGenerator(wrapped, MAX_NEW_TOKENS, 4), []

    def aggregate(steps):
        aggregated.append(len(steps))
        if len(aggregated) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return aggregate_steps(steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "aggregate_steps", aggregate)
        found = [(answer.index, answer.tokens) for answer in generator.generate(groups)]
    assert sorted(found) == sorted(wanted.items())
    assert generator.batch_size == 2


def test_out_of_memory_frees_what_the_failed_pass_made():
    """Before the next try, pictures and decoder alike."""
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    made = []

    def fail_first(name):
        if all(failed != name for failed, _ in made):
            states = torch.zeros(3)
            made.append((name, weakref.ref(states)))
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert all(state() is None for _, state in made), f"{name}: a failed pass is still in memory"

    def encode(pixels):
        fail_first("encode")
        return wrapped.encode_images(pixels)

    hook = wrapped.decoder.register_forward_pre_hook(lambda module, arguments: fail_first("decode"))
    generator = AnswerGenerator(dataclasses.replace(wrapped, encode_images=encode), MAX_NEW_TOKENS, 4)
    assert len(list(generator.generate(groups_of([1] * 6)))) == 6
    hook.remove()
    assert [name for name, _ in made] == ["encode", "decode"]


def test_out_of_memory_at_one_record_is_an_error():
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME

    def refuse(module, arguments, options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = wrapped.decoder.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError):
        list(AnswerGenerator(wrapped, MAX_NEW_TOKENS, 4).generate(groups_of([1, 1])))
    hook.remove()


@pytest.mark.parametrize("questions", [1, 2])
def test_nothing_of_length_times_length_is_allocated(questions):
    """The largest tensor of a prefill outside the fused kernel, also with a shared prefix."""
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            values = result if isinstance(result, tuple | list) else [result]
            seen.extend(value.numel() for value in values if isinstance(value, torch.Tensor))
            return result

    asked = tuple(Question(number, Prompt((1,) * 160, (9,) * 31)) for number in range(questions))
    with Watch():
        list(AnswerGenerator(wrapped, 1, questions).generate([PictureGroup({"pixel_values": torch.zeros(4)}, asked)]))
    length = 160 + 9 + 31
    assert max(seen) < length * length


ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def moved(wrapped, device, dtype=torch.float32):
    """The tiny model on a device; its pictures are still made in fp32 on the CPU, so that both see the same."""
    wrapped.decoder.to(device, dtype)
    return dataclasses.replace(
        wrapped,
        lm_head=wrapped.lm_head.to(device, dtype),
        encode_images=lambda pixels: wrapped.encode_images({"pixel_values": pixels["pixel_values"].cpu()}).to(
            device, dtype
        ),
    )


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_a_gpu_gives_the_same(models, device):
    _, wrapped = models
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1, 4, 2, 9, 1, 5])
    wanted = {answer.index: answer for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 8).generate(groups)}
    found = list(AnswerGenerator(moved(wrapped, device), MAX_NEW_TOKENS, 8).generate(groups))
    assert len(found) == len(wanted)
    for answer in found:
        assert answer.tokens == wanted[answer.index].tokens
        if answer.map is not None:
            torch.testing.assert_close(answer.map, wanted[answer.index].map, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_graphs_give_what_single_kernels_give(models, device, monkeypatch):
    """Long enough answers that every shape is captured and replayed, with batches that shrink and grow."""
    _, wrapped = models
    wrapped = moved(dataclasses.replace(wrapped, eos_token_ids=frozenset([EOS])), device)
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1, 4, 2, 9, 1, 5, 3, 3])
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph)))
    found = {answer.index: answer for answer in AnswerGenerator(wrapped, 60, 12).generate(groups)}
    assert replays
    monkeypatch.setattr(generation, "_takes_graphs", lambda device: False)
    wanted = {answer.index: answer for answer in AnswerGenerator(wrapped, 60, 12).generate(groups)}
    assert found.keys() == wanted.keys()
    for index, answer in found.items():
        assert answer.tokens == wanted[index].tokens
        if answer.map is not None:
            torch.testing.assert_close(answer.map, wanted[index].map, rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_a_decoder_that_cannot_be_captured_runs_without_graphs(device, caplog):
    """It looks at a value on the host, as some mixtures of experts do."""
    _, wrapped = tiny()
    wrapped = moved(dataclasses.replace(wrapped, eos_token_ids=frozenset()), device)
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1, 4, 2])
    wanted = {answer.index: answer.tokens for answer in AnswerGenerator(wrapped, 20, 8).generate(groups)}
    wrapped.decoder.layers[0].register_forward_pre_hook(lambda module, inputs: float(inputs[0].sum()) and None)
    found = {answer.index: answer.tokens for answer in AnswerGenerator(wrapped, 20, 8).generate(groups)}
    assert found == wanted
    assert caplog.text.count("decode steps run without CUDA graphs") == 1


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_real_out_of_memory_on_a_gpu(device):
    """More than one picture at a time takes more than the device has."""
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1] * 12)
    wanted = {answer.index: answer.tokens for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 4).generate(groups)}
    on_device = moved(wrapped, device)
    share = int(0.6 * torch.cuda.mem_get_info()[0])

    def encode(pixels):
        held = torch.empty(len(pixels["pixel_values"]), share, dtype=torch.uint8, device=device)
        del held
        return on_device.encode_images(pixels)

    generator = AnswerGenerator(dataclasses.replace(on_device, encode_images=encode), MAX_NEW_TOKENS, 4)
    assert {answer.index: answer.tokens for answer in generator.generate(groups)} == wanted
    assert generator.batch_size == 4


def test_no_groups_no_answers():
    _, wrapped = tiny()
    assert list(AnswerGenerator(wrapped, MAX_NEW_TOKENS, 4).generate([])) == []


@pytest.fixture
def fixed_steps(monkeypatch):
    """Decode steps as on a GPU, in shapes rounded up, but run one by one; yields the shapes."""
    shapes = []

    def run(self, step, rows, total):
        shapes.append((rows, total))
        step(rows, total)

    monkeypatch.setattr(generation, "_takes_graphs", lambda device: True)
    monkeypatch.setattr(generation.DecodeGraphs, "run", run)
    return shapes


@pytest.mark.parametrize("batch_size", [1, 3, 6, 20])
def test_steps_of_rounded_shapes_give_the_same(models, batch_size, fixed_steps, monkeypatch):
    """Also where the rows that nobody asked for hold NaN."""
    _, wrapped = models
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of([1, 4, 2, 9, 1, 5])
    with monkeypatch.context() as patch:
        patch.setattr(generation, "_takes_graphs", lambda device: False)
        wanted = {
            answer.index: answer for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, batch_size).generate(groups)
        }
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *shape: self.new_full(shape, float("nan")), raising=False
    )
    found = {answer.index: answer for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, batch_size).generate(groups)}
    assert found.keys() == wanted.keys()
    for index, answer in found.items():
        assert (answer.tokens, answer.outcome) == (wanted[index].tokens, wanted[index].outcome)
        if answer.map is not None:
            torch.testing.assert_close(answer.map, wanted[index].map, rtol=0, atol=1e-6)
    assert {rows for rows, _ in fixed_steps} <= {min(batch_size, rows) for rows in (8, 16, 24)}
    assert {total for _, total in fixed_steps} == {64}


def test_a_cache_that_moved_loses_its_graphs(fixed_steps, monkeypatch):
    """A prompt longer than all before, admitted while an answer is under way."""
    _, wrapped = tiny()
    wrapped = dataclasses.replace(wrapped, eos_token_ids=frozenset(), context_length=400)
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    forgotten = []
    monkeypatch.setattr(generation.DecodeGraphs, "forget", lambda self: forgotten.append(len(fixed_steps)))
    short, long = Prompt((1,), (9,) * 3), Prompt((1,) * 200, (9,))
    groups = [
        PictureGroup({"pixel_values": torch.ones(4) * number}, (Question(number, prompt),))
        for number, prompt in enumerate([short, short, long])
    ]
    list(AnswerGenerator(wrapped, 4, 2).generate(groups))
    # Once when memory is first taken, and once for the long prompt, after the short answers' three steps.
    assert forgotten == [0, 3]
    assert {total for _, total in fixed_steps} == {64, 256}


def test_a_finished_batch_is_freed_at_once(fixed_steps, monkeypatch):
    """Without waiting for the garbage collector: on a GPU it holds most of the memory."""
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    batches = []
    start = generation._Batch.__init__
    monkeypatch.setattr(
        generation._Batch, "__init__", lambda self, *rest: (batches.append(weakref.ref(self)), start(self, *rest))[1]
    )
    gc.collect()
    gc.disable()
    try:
        list(AnswerGenerator(wrapped, 4, 2).generate(groups_of([1, 2])))
        assert [batch() for batch in batches] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("tokens", "passes"),
    [
        ([], []),
        ([100], [[0]]),
        ([50, 40], [[0, 1]]),
        ([40, 60], [[0], [1]]),
        ([10] * 12, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]),
        ([200, 1], [[0], [1]]),
    ],
)
def test_prefill_passes_are_few_and_alike(tokens, passes, monkeypatch):
    """At most 100 tokens each, padding included."""
    monkeypatch.setattr(generation, "_PREFILL_TOKENS", 100)
    assert [list(some) for some in generation._passes(range(len(tokens)), tokens)] == passes


def test_pictures_are_encoded_a_few_at_a_time(monkeypatch):
    _, wrapped = tiny()
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    seen = []

    def encode(pixels):
        seen.append(len(pixels["pixel_values"]))
        return wrapped.encode_images(pixels)

    monkeypatch.setattr(generation, "_ENCODED_AT_ONCE", 3)
    list(AnswerGenerator(dataclasses.replace(wrapped, encode_images=encode), 2, 8).generate(groups_of([1] * 8)))
    assert seen == [3, 3, 2]


@pytest.mark.parametrize("questions", [[1] * 6, [2] * 3])
def test_prefill_in_several_passes_gives_the_same(models, questions, monkeypatch):
    _, wrapped = models
    wrapped.decoder.config._attn_implementation = ATTENTION_NAME
    groups = groups_of(questions)
    wanted = {answer.index: answer.tokens for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 6).generate(groups)}
    monkeypatch.setattr(generation, "_PREFILL_TOKENS", 30)
    rows = []
    prefill = generation._Batch._prefill
    monkeypatch.setattr(
        generation._Batch, "_prefill", lambda self, some, *rest: (rows.append(len(some)), prefill(self, some, *rest))
    )
    found = {answer.index: answer.tokens for answer in AnswerGenerator(wrapped, MAX_NEW_TOKENS, 6).generate(groups)}
    assert found == wanted
    assert max(rows) < 6
