"""Story generator and checker: `python stories.py --n 3 --seed 1` prints stories, `--check FILE` parses them."""
import argparse
import random
import sys

from grammar import Grammar
from lexicon import CLASSES
from plots import RULES, SHORTHAND

GRAMMAR = Grammar(CLASSES, RULES, SHORTHAND)


def stories(seed, n):
    """Yields n (text, nats) pairs; the same seed gives the same stories."""
    rng = random.Random(seed)
    for _ in range(n):
        yield GRAMMAR.generate(rng)


def check(text):
    """(True, nats) if the text is a story of the grammar, else (False, what the parser was stopped by)."""
    nats = GRAMMAR.parse(text)
    if nats is not None:
        return True, nats
    pos, wanted = GRAMMAR.far
    return False, f"at character {pos}: expected {wanted!r}, found {text[pos:pos + 40]!r} after {text[max(0, pos - 60):pos]!r}"


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--n", type=int, default=3)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--check", help="file with stories separated by blank lines")
    args = ap.parse_args()
    if args.check:
        texts = [t for t in open(args.check).read().split("\n\n") if t.strip()]
        results = [check(t.strip()) for t in texts]
        for ok, info in results:
            print("pass" if ok else "FAIL", info)
        sys.exit(0 if all(ok for ok, _ in results) else 1)
    for text, nats in stories(args.seed, args.n):
        print(f"{text}\n[{nats:.1f} nats]\n")


if __name__ == "__main__":
    main()
