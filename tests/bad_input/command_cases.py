"""How bad command lines are drawn, by the subcommand."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from .commands import CommandCase, judge, prepare
from .engine import Kind

# No name here could be a hub id that is asked for, nor a place where work would be lost.
TEXTS = (
    "", " ", "-", "--", "-1", "0", "nan", "None", "\0", "a\0b", "é", "\U0001f600", "a\nb", "x" * 300, "x" * 5000,
    "../..", ".", "/",
    "/dev/null", "/dev/full", "/proc/self/mem", "/proc/none/x", "~nobody/x", "{file}", "{file}/x", "{empty}", "{model}",
    "{model}/config.json", "{run}", "{data}", "{new}", "{new}/a/b", "'", '"', "$(true)", "*", "a,b", ",", "%s", "{}",
    "{0}", "\\",
    "http://x/y", "\u202egpj", "\ud800", "mamba-130", "mamba-130m ", "pythia", "piqa", "PIQA", "piqa,piqa", "piqa,,",
    "fp16", "cpu",
    "cuda", "cuda:0", "cuda:-1", "cuda:" + "9" * 30, "meta", "float32", "float64", "auto", "hf", "reference", "True",
)  # fmt: skip
INTEGERS = (
    "", " ", "0", "-1", "1", "2", "5", "1e3", "1.5", "nan", "inf", "-inf", "0x10", "1_0", "१", " 3 ", "three", "-0",
    "+1", "9" * 30,
    "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" * 5000,
    "\0", "None",
)  # fmt: skip
LISTS = (
    "", ",", ",,", "piqa", "piqa,", " piqa ", "piqa,piqa", "piqa,hellaswagg", "arc", "*", "{file}", "{new}.yaml",
    "{empty}.yml",
    "{model}/config.json", "piqa\0", "é", "a" * 3000, "../piqa", "/", ".yaml", "piqa.yaml", "mmlu_nothing", "[piqa]",
    "{data}",
)  # fmt: skip
FLAGS = ("--control", "--nonsense", "-x", "--help=1", "--tasks", "--", "--version", "extra", "--long", "--peers")
SHAPES = (
    "", "1", "1,1,1", "1,1,1,1,1", "a,b,c,d", "0,1,1,1", "-1,1,1,1", "1.5,1,1,1", "nan,1,1,1", "9" * 30 + ",1,1,1",
    "1;1;1;1", "\0",
    "99999,99999,99999,99999", "1,,1,1", " , , , ", "1,2,2147483648,1",
)  # fmt: skip

EVAL: Mapping[str, tuple[str, ...]] = {
    "--tasks": LISTS,
    **dict.fromkeys(("--num-fewshot", "--limit", "--max-length", "--batch-tokens", "--seed"), INTEGERS),
    **dict.fromkeys(
        ("--data", "--dtype", "--device", "--backend", "--parity", "--tokenizer", "--out", "--revision"), TEXTS
    ),
}
# What every command line begins with, and what is added: each option with the set its values come from.
COMMANDS: dict[str, tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]] = {
    "eval": (
        ("eval", "{model}", "--data", "{data}", "--tasks", "piqa", "--limit", "1", "--out", "{new}", "--offline"),
        {"": TEXTS, **EVAL},
    ),
    "report": (("report", "{run}", "--out", "{new}"), {"": TEXTS, "--out": TEXTS, "--pair": TEXTS}),
    "init": (
        ("init", "{new}", "--d-model", "8", "--n-layer", "1", "--vocab-size", "64"),
        {
            **dict.fromkeys(("--d-model", "--n-layer", "--vocab-size", "--seed"), tuple(i for i in INTEGERS)),
            **dict.fromkeys(("--like", "--layout", ""), tuple(t for t in TEXTS if "mamba-130m" not in t)),
        },
    ),
    "convert": (("convert", "{model}"), {"": TEXTS, "--layout": TEXTS}),
    "fetch": (("fetch", "{new}"), {"": TEXTS, "--tasks": tuple(t for t in LISTS if "piqa" not in t)}),
    "bench scan": (
        ("bench", "scan", "--shape", "1,2,8,2", "--repeats", "1", "--out", "{new}", "--shape", "bad"),
        {
            "--shape": SHAPES,
            "--dtype": TEXTS,
            "--repeats": INTEGERS,
            "--peer-seconds": (*INTEGERS, "1e400", "-1e-400"),
            "--device": TEXTS,
        },
    ),
    "bench zero-shot": (
        ("bench", "zero-shot", "--data", "{data}", "--limit", "1", "--out", "{new}", "--tasks", "none"),
        {"--limit": INTEGERS, "--repeats": INTEGERS, "--checkpoint": TEXTS, "--data": TEXTS, "--tokenizer": TEXTS},
    ),
    "parity": (
        ("parity", "{model}", "--data", "{data}", "--tasks", "none", "--limit", "1", "--out", "{new}", "--offline"),
        {"": TEXTS, **{name: values for name, values in EVAL.items() if name != "--tasks"}},
    ),
    "demo, doctor, models": (("models",), {"": TEXTS}),
}
MODEL_ARGS = (
    "revision",
    "tokenizer",
    "dtype",
    "device",
    "backend",
    "parity",
    "max_length",
    "batch_tokens",
    "seed",
    "colour",
)
# Each costs a second or more: few, and such as reach far into the command.
PROCESSES = (
    ("eval", "{model}", "--data", "{data}", "--tasks", "piqa", "--limit", "0"),
    ("eval", "{model}", "--data", "{data}", "--tasks", "piqa", "--limit", "1", "--out", "/dev/full"),
    ("eval", "\udcff", "--offline"),
    ("eval", "é", "--offline", "--device", "\udcff"),
    ("init", "{new}", "--d-model", "8", "--n-layer", "2147483647"),
    ("report", "{file}"),
    ("convert", "{model}", "{empty}/x/\n", "--layout", "hf"),
    ("parity", "{empty}", "--offline", "--out", "{file}/x"),
    ("demo", "--out", "{file}/x"),
    ("lm-eval",),
)


def _command(name: str) -> st.SearchStrategy[CommandCase]:
    """A command line of this name with up to three more arguments."""
    base, options = COMMANDS[name]
    one = st.sampled_from(tuple(options)).flatmap(
        lambda option: st.sampled_from(options[option]).map(lambda value: (option, value) if option else (value,))
    )
    extra = st.lists(
        st.one_of(one, one, one, one, st.sampled_from(FLAGS).map(lambda flag: (flag,))), min_size=1, max_size=3
    )
    return extra.map(lambda parts: CommandCase(arguments=(*base, *(text for part in parts for text in part))))


_other = st.lists(st.sampled_from((*TEXTS, *FLAGS)), min_size=1, max_size=3).flatmap(
    lambda rest: st.sampled_from(("doctor", "models", "demo", "evaluate", "", "\0", "EVAL", "é")).map(
        lambda c: (c, *rest)
    )
)
SORTS: dict[str, st.SearchStrategy[CommandCase]] = {
    **{name: _command(name) for name in COMMANDS if name != "demo, doctor, models"},
    "other commands": _other.map(lambda arguments: CommandCase(arguments=arguments)),
    "model_args of lm-eval": st.lists(
        st.tuples(
            st.sampled_from(MODEL_ARGS), st.sampled_from([text for text in (*TEXTS, *INTEGERS) if len(text) < 999])
        ),
        min_size=1,
        max_size=2,
    ).map(
        lambda pairs: CommandCase(
            arguments=(",".join(["pretrained={model}", *map("=".join, pairs)]),), way="model_args"
        )
    ),
    "in a process of its own": st.sampled_from(PROCESSES).map(lambda a: CommandCase(arguments=a, way="process")),
}
KIND = Kind(name="command line", sorts=SORTS, judge=judge, draws=14, prepare=prepare)
