"""Random calls of every public op with wrong and strange arguments: hostile_calls.py COUNT [SEED].

Prints how many were taken, refused by name, and answered with fake tensors; exits with 1 at a
wrong answer after printing it, and dies where an op does.
"""

import collections
import faulthandler
import random
import sys
import traceback
import warnings

import test_fuzz
import test_fuzz_lora

faulthandler.enable()
warnings.simplefilter("ignore")


def main(count: int, seed: int = 0) -> int:
    rng, outcomes, wrong = random.Random(seed), collections.Counter(), collections.Counter()
    trials = {op: test_fuzz.random_trial for op in test_fuzz.OPS}
    trials |= dict.fromkeys(test_fuzz_lora.CASES, test_fuzz_lora.random_trial)
    for index in range(count):
        op = rng.choice(list(trials))
        try:
            outcomes[trials[op](op, rng)] += 1
        except AssertionError as error:
            wrong[op] += 1
            if wrong.total() <= 20:
                print(f"call {index}: {error}", flush=True)
                traceback.print_exception(error.__cause__, limit=-3)
        if index % 10_000 == 9_999:
            print(index + 1, dict(outcomes), dict(wrong), flush=True)
    print(count, dict(outcomes), dict(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
