"""Every default, once: the pipeline's signature and the stages' command lines both take them from here."""

MAX_REJECT_FRACTION = 0.05
NUM_SHARDS = 4

LLAVA_MODEL = "llava-hf/llava-1.5-7b-hf"
MGM_MODEL = "YanweiLi/MGM-7B"
BERT_MODEL = "google-bert/bert-base-uncased"
# A branch is good enough to try; a run that is to be repeated pins the commit.
REVISION = "main"
PROMPT = "method"
MAX_NEW_TOKENS = 100
DTYPE = "auto"
ATTENTION_BATCH_SIZE = 16

BERT_BATCH_TOKENS = 4096

NUM_CLUSTERS = 1000
NUM_ITERATIONS = 100
SEED = 42

RATIO = 0.2
NUM_SAMPLES = 0
ALPHA = 0.5
TEMPERATURE = 1.0
SAMPLER = "gumbel"
MISSING_IOU = "text"
TEXT_NORMALIZATION = "reference"
TOP_PERCENT = 30
STRATIFY = ""
