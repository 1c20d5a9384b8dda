"""Training shards: fresh stories from a seed, tokenised and packed whole into rows of fixed length (uint16)."""
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from stories import stories

END, STORY = 0, 1
HELD_OUT_SEED = 1_000_000_007
STORIES_PER_SHARD = 50_000


def load_tokenizer(folder):
    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def encode_stories(tokenizer, texts):
    return [e.ids + [END] for e in tokenizer.encode_batch(texts)]


def pack(seqs, row, rng):
    """First-fit of whole sequences into rows, over a window of open rows; the rest of a row is END."""
    rows, window = [], []
    for seq in seqs:
        for i, used in enumerate(window):
            if len(used) + len(seq) <= row:
                used.extend(seq)
                if row - len(used) < 100:
                    rows.append(window.pop(i))
                break
        else:
            window.append(list(seq))
            if len(window) > 64:
                rows.append(window.pop(0))
    rows += window
    rng.shuffle(rows)
    out = np.full((len(rows), row), END, dtype=np.uint16)
    for i, used in enumerate(rows):
        out[i, : len(used)] = used
    return out


def make_shard(folder, seed, row, count=STORIES_PER_SHARD):
    """Rows of packed stories, the number of story tokens, of text bytes, and the generator's nats."""
    made = list(stories(seed, count))
    seqs = encode_stories(load_tokenizer(folder), [text for text, _ in made])
    tokens = sum(len(s) - 1 for s in seqs)
    size = sum(len(text) for text, _ in made)
    return pack(seqs, row, random.Random(seed)), tokens, size, sum(nats for _, nats in made)


def shard_stream(folder, first_seed, row, workers, count=STORIES_PER_SHARD):
    """Endless shards with seeds first_seed, first_seed + 1, ..., made ahead by worker processes."""
    pool, queue, seed = ProcessPoolExecutor(workers), [], first_seed
    try:
        while True:
            while len(queue) < 2 * workers:
                queue.append(pool.submit(make_shard, folder, seed, row, count))
                seed += 1
            yield queue.pop(0).result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
