"""How bad task files and documents are drawn, by the sort of damage."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from .engine import Kind
from .task_damage import ENCODINGS
from .tasks import DATA, FILES, TaskCase, judge, prepare

KEYS = (
    "task", "dataset_path", "dataset_name", "dataset_kwargs", "dataset_kwargs.data_files", "output_type", "test_split",
    "validation_split", "training_split", "fewshot_split", "fewshot_config", "fewshot_config.sampler", "doc_to_text",
    "doc_to_choice", "doc_to_target", "metric_list", "num_fewshot", "generation_kwargs", "generation_kwargs.until",
    "generation_kwargs.max_gen_toks", "generation_kwargs.do_sample", "generation_kwargs.temperature", "filter_list",
    "repeats", "process_docs", "process_results", "metadata", "metadata.version", "group", "include", "class",
    "custom_dataset", "description", "target_delimiter", "fewshot_delimiter", "should_decontaminate", "tag", "unknown",
    "use_prompt", "gen_prefix", "unsafe_code", "doc_to_image", "task_alias", "dataset_kwargs.trust_remote_code",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    ..., None, True, False, 0, 1, -1, 3, 10**6, 2**70, 0.5, math.nan, math.inf, "", " ", "x", "test", "train", "json",
    "parquet",
    "text", "n", "{{text}}", "{{n}}", "{{missing}}", "{{", "{% for %}", "é\n\0", "x" * 3000, "/etc/passwd", "../..",
    "piqa",
    "multiple_choice", "loglikelihood", "generate_until", "imagenet/none", [], [1], ["a", "b"], ["{{text}}"] * 3, {},
    {"a": 1},
    {"test": "documents.jsonl"}, {"test": "none.jsonl"}, {"test": []}, [{"metric": "acc"}], [{"metric": "nope"}], [{}],
    [{"metric": "exact_match"}], [{"metric": "acc", "aggregation": "nope"}], [{"name": "x", "filter": []}],
    [{"name": "x", "filter": [{"function": "nope"}]}], [{"name": "x", "filter": [{"function": "regex"}]}],
)  # fmt: skip
TEMPLATES = (
    "{{", "{% if %}", "{{ text.a.b }}", "{{ 1 / 0 }}", "{{ [].pop() }}", "{{ missing }}", "{{ missing.a }}",
    "{% include 'x' %}",
    "{{ text | nofilter }}", "{{ text() }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ text * 3000 }}",
    "{% for i in range(100000) %}{% endfor %}{{ text }}", "{{ text[99] }}", "{{ none }}", "{{ n }}", "{{ [text] }}",
    "{# #}",
    "{{ raise('x') }}", "{{ '\\ud800' }}", "{{ 0 | round(precision='x') }}", "{{ text.__class__.__mro__ }}", "\x00",
    "{{ {} }}",
)  # fmt: skip
WHOLES = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"---\n---\n", b"- 1\n", b"3", b"null", b"a: b: c", b"\t- a", b"a: [",
    b"a: *x",
    b"!function nowhere.f", b"a: !function nowhere.f", b"a: !function os.system", b"!!python/object:os.system {}",
    b"%YAML 9",
    b"task: x\ntask: y", b"include: choice.yaml", b"include: none.yaml", b"include: [a", b"&a [*a]", b"? [a]\n: 1",
    b"a" * 300_000,
    b"[" * 5000, b"task: !!binary x", b"task: 2020-01-01", b"group: x", b"group: x\ntask: [choice]",
    b"group: x\ntask: 3",
    b"group: [a]\ntask: {a: 1}", b"class: !function nowhere.T\ntask: x", b"task: x\ndataset_path: json",
    b"task: [a, b]",
    b"task: x\ndataset_path: json\ndataset_kwargs: {data_files: documents.jsonl}\ntest_split: test", b"a: &b [*b, *b]",
)  # fmt: skip
LINES = (
    b"", b" ", b"{", b"[]", b"[1]", b"null", b"3", b'"x"', b"{}", b'{"text": NaN}', b'{"text": 1e999}', b"\xff\xfe",
    b"\0" * 20,
    b'{"text": "a", "text": "b"}', b'{"text": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"text": "' + b"x" * 2_000_000 + b'"}',
    b"{'text': 'a'}", b'{"text": "a"} {"text": "b"}', b'{"text": "a",}', b"//", b'{"text": ' + b"9" * 5000 + b"}",
    b'"' + b"\\" * 99,
    b'{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}', b'{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}',
)  # fmt: skip
FIELDS: dict[str, tuple[str, ...]] = {
    "piqa": ("goal", "sol1", "sol2", "label"),
    "arc_easy": ("question", "choices", "answerKey", "id"),
    "hellaswag": ("activity_label", "ctx_a", "ctx_b", "endings", "label", "ind", "ctx"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
    "lambada_openai": ("text",),
    **dict.fromkeys(FILES, ("text", "other", "n", "new")),
}
FIELD_VALUES: tuple[Any, ...] = (
    None, True, 0, 1, 2, -1, 2**40, 2**70, 0.5, math.nan, math.inf, "", " ", "_", "a _ b", "0", "1", "2", "A", "Z",
    "x", "\0",
    "\ud800", "é\u2028\n", "word " * 3000, [], ["a"], ["a", "b", "c", "d"], ["", "", "", ""], [None] * 4, {},
    {"text": ["a", "b"]},
    {"text": ["a", "b"], "label": ["A", "A"]}, {"text": ["a", "b"], "label": ["A", "B"]}, {"text": [], "label": []},
    [[["a"]]],
)  # fmt: skip
MANIFEST_VALUES: tuple[Any, ...] = (
    ...,
    None,
    0,
    -1,
    "",
    "x",
    "0" * 64,
    [],
    [1],
    {},
    {"a": 1},
    {"sha256": "0" * 64},
    math.nan,
)
SPOTS = st.tuples(st.sampled_from(("head", "any", "any")), st.floats(0, 1, exclude_max=True))
RUNS = st.one_of(
    st.binary(min_size=1, max_size=20), st.sampled_from((b"\xff", b"\0", b"\n\n", b'"', b"\\", b"}", b"\t", b": "))
)
MASKS = st.sampled_from((1, 2, 4, 8, 16, 32, 64, 128, 255))
OWN, SIX = st.sampled_from(tuple(FILES)), st.sampled_from(tuple(DATA))
BYTES = st.one_of(
    st.tuples(st.just("flip"), st.tuples(SPOTS, MASKS)),
    st.tuples(st.just("cut"), SPOTS),
    st.tuples(st.just("insert"), st.tuples(SPOTS, RUNS)),
)
GONE = st.sampled_from(("nothing", "a folder", "a link to nothing", "a link to itself"))
INSTEAD = st.one_of(
    st.tuples(st.just("replace"), st.sampled_from(WHOLES)),
    st.tuples(st.just("remove"), GONE),
    st.tuples(st.just("append"), RUNS),
)


def _file(task: str) -> str:
    return f"{task}.yaml"


def _documents(task: str) -> str:
    return DATA.get(task, "documents.jsonl")


def damaged(
    tasks: st.SearchStrategy[str], file: Any, damage: st.SearchStrategy[tuple[str, Any]]
) -> st.SearchStrategy[TaskCase]:
    """One damage to one file of a task."""
    return st.builds(lambda task, how: TaskCase(task=task, damages=((how[0], file(task), how[1]),)), tasks, damage)


def _named(damage: str, how: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.just(damage), how)


def _one_field(task: str) -> st.SearchStrategy[TaskCase]:
    how = st.tuples(st.integers(0, 3), st.sampled_from(FIELDS[task]), st.sampled_from((*FIELD_VALUES, ...)))
    return damaged(st.just(task), _documents, _named("document", how))


_pairs = st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), min_size=1, max_size=2).map(tuple)
_texts = st.tuples(
    st.sampled_from(("doc_to_text", "doc_to_target", "doc_to_choice", "description")), st.sampled_from(TEMPLATES)
)
_any_task = st.one_of(SIX, OWN)
_in_manifest = st.tuples(st.sampled_from(("files", "source", "new")), st.sampled_from(MANIFEST_VALUES))
_scripts = st.sampled_from(("piqa.py", "data.py", "script.sh", "setup.py"))

SORTS: dict[str, st.SearchStrategy[TaskCase]] = {
    "task file: fields": damaged(OWN, _file, _named("fields", _pairs)),
    "task file: templates": damaged(OWN, _file, _named("fields", _texts.map(lambda pair: (pair,)))),
    "task file: bytes": damaged(OWN, _file, BYTES),
    "task file: something else": damaged(OWN, _file, INSTEAD),
    "documents: fields": _any_task.flatmap(_one_field),
    "documents: lines": damaged(
        _any_task, _documents, _named("line", st.tuples(st.integers(0, 3), st.sampled_from(LINES)))
    ),
    "documents: encodings": damaged(_any_task, _documents, _named("encoding", st.sampled_from(tuple(ENCODINGS)))),
    "documents: bytes": damaged(_any_task, _documents, BYTES),
    "documents: something else": damaged(_any_task, _documents, INSTEAD),
    "documents: Parquet": damaged(
        st.just("piqa"),
        _documents,
        _named("parquet", st.sampled_from(("cut", "flipped", "a text", "other columns", "no rows"))),
    ),
    "documents: code beside them": damaged(SIX, _documents, _named("code", _scripts)),
    "manifest": damaged(
        SIX,
        lambda task: "manifest.json",
        st.one_of(BYTES, INSTEAD, _named("fields", _in_manifest.map(lambda pair: (pair,)))),
    ),
}
KIND = Kind(name="task file", sorts=SORTS, judge=judge, draws=14, prepare=prepare)
