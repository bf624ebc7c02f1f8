"""The groups of `bench.py`, in the order in which they run; each module has `run(report)`."""

GROUPS = (
    "pgd",
    "train",
    "lora",
    "switches",
    "growth",
    "memory",
    "ops",
    "autoattack",
    "endtoend",
    "gpu",
)
