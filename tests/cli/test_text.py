"""bert_features and cluster_scoring from the shell."""

import re

import pytest

from components.bert_features.__main__ import main as bert
from components.cluster_scoring.__main__ import main as scoring


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (bert, ["--records", "/nowhere", "--model", "/m", "--features", "/tmp/f"], "no _manifest.json"),
        (bert, ["--records", "/r", "--features", "/tmp/f", "--part", "3/2"], "part: got '3/2'"),
        (scoring, ["--features", "/nowhere", "--scores", "/tmp/s"], "no _manifest.json"),
        (scoring, ["--features", "/f", "--scores", "/tmp/s", "--num-clusters", "-1"], "num_clusters: got -1"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_2(main, arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


BERT_OPTIONS = (
    "records",
    "model",
    "revision",
    "batch-tokens",
    "dtype",
    "cache-uri",
    "require-gpu",
    "no-require-gpu",
    "part",
    "features",
)


@pytest.mark.parametrize(
    ("main", "options"),
    [
        (bert, {*BERT_OPTIONS, "help"}),
        (
            scoring,
            {"features", "num-clusters", "num-iterations", "order", "kmeans-uri", "seed", "scores", "kmeans", "help"},
        ),
    ],
)
def test_help_explains_every_option(main, options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = re.findall(r" --([a-z][a-z-]*)", capsys.readouterr().out)
    assert set(shown) == options
