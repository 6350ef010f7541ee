"""lm-eval's host work done once: requests, samples, hashes and metrics as stock gives them, and stock again after."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import sys
from dataclasses import replace
from datetime import datetime
from importlib import import_module
from pathlib import Path

import datasets
import jinja2
import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.utils
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mambalab.harness import lm_eval_host
from mambalab.harness.bench_host import Instant
from mambalab.harness.lm_eval_host import SUBSTITUTIONS, Rows, as_it_is, done_once, in_rows
from mambalab.harness.task_files import TASKS, load_tasks
from mambalab.harness.zero_shot import run_tasks

MINIATURE = Path(__file__).parent.parent / "harness" / "miniature"


def _evaluated(tasks, limit=None):
    """lm-eval's own entry, with nothing of ours around it but the contexts that the caller opens."""
    return lm_eval.evaluator.evaluate(Instant(), tasks, limit=limit, bootstrap_iters=0, log_samples=True)


def _text(results):
    return json.dumps(results, default=repr)


def _requests(tasks):
    return [(i.task_name, i.doc_id, i.idx, i.request_type, i.args, i.doc) for t in tasks.values() for i in t.instances]


def _both(tasks, limit=None):
    """Results and requests of stock lm-eval, then of the same with its work done once."""
    found = []
    for host in (None, done_once):
        if host is None:
            found.append((_text(_evaluated(tasks, limit)), _requests(tasks["tasks"])))
        else:
            with host():
                found.append((_text(_evaluated(tasks, limit)), _requests(tasks["tasks"])))
    return found


@pytest.fixture(scope="module")
def miniature():
    return load_tasks(TASKS, MINIATURE)


def test_all_six_tasks_give_what_stock_gives_to_the_byte(miniature, capsys):
    stock, ours = _both(miniature)
    assert ours == stock
    samples = json.loads(ours[0])["samples"]
    assert samples.keys() == set(TASKS)
    assert {"doc_hash", "prompt_hash", "target_hash", "arguments", "doc"} <= samples["arc_easy"][0].keys()


def test_few_shot_prompts_are_the_same(miniature, capsys):
    tasks = load_tasks(("arc_easy",), MINIATURE)
    tasks["tasks"]["arc_easy"].set_config(key="num_fewshot", value=2)
    found = []
    for host in (as_it_is, done_once):
        tasks["tasks"]["arc_easy"].set_fewshot_seed(seed=7)
        with host():
            found.append((_text(_evaluated(tasks)), _requests(tasks["tasks"])))
    assert found[0] == found[1]
    assert found[0][1][0][4][0].count("Answer:") == 3


@pytest.mark.parametrize("task", ["arc_easy", "winogrande"])
def test_whole_real_sets_give_what_stock_gives_to_the_byte(task, data, capsys):
    stock, ours = _both(load_tasks((task,), data / "zero_shot"))
    assert ours == stock


def test_a_task_of_ones_own_with_filters_descriptions_and_generation_is_the_same(tmp_path, capsys):
    rows = [{"q": f"{i}?", "a": str(i), "n": [i, -i], "few": {"x": None, "é": 0.5}} for i in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: generate_until\ndescription: '{{q}} {{n | join(\"+\")}} '\n"
        'doc_to_text: \'{% for i in n %}{{loop.index}}:{{i}} {% endfor %}{{q | regex_replace("[0-9]", "x")}}\'\n'
        "doc_to_target: '{{n}}'\ngeneration_kwargs: {until: ['\\n']}\n"
        "filter_list:\n- {name: first, filter: [{function: take_first}]}\n"
        "- {name: low, filter: [{function: lowercase}, {function: take_first}]}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    stock, ours = _both(load_tasks((str(tmp_path / "own.yaml"),), tmp_path))
    assert ours == stock
    assert "exact_match,low" in ours[0]


@pytest.mark.parametrize("limit", [1, 3, 10**6])
def test_a_limit_asks_the_same_documents(miniature, limit, capsys):
    one = {"tasks": {"piqa": miniature["tasks"]["piqa"]}}
    stock, ours = _both(one, limit)
    assert ours == stock


def test_each_template_is_compiled_once(miniature, monkeypatch, capsys):
    compiled = []
    stock = jinja2.Environment.from_string
    monkeypatch.setattr(
        jinja2.Environment, "from_string", lambda env, text, *more: compiled.append(text) or stock(env, text, *more)
    )
    with done_once():
        _evaluated({"tasks": {"arc_easy": miniature["tasks"]["arc_easy"]}})
    assert len(compiled) == len(set(compiled)) == 3


@pytest.mark.parametrize("template", ["{{missing}}", "{{ q.x.y }}", "{% if %}", "{{ q | nofilter }}"])
def test_a_bad_template_is_the_error_that_stock_gives(template):
    errors = []
    for host in (as_it_is, done_once):
        with host(), pytest.raises(jinja2.TemplateError) as caught:
            lm_eval.utils.apply_template(template, {"q": "1"})
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def _names():
    return [vars(_owner(s))[s.name.split(".")[-1]] for s in SUBSTITUTIONS]


def _owner(substitution):
    owner = import_module(substitution.module)
    for part in substitution.name.split(".")[:-1]:
        owner = getattr(owner, part)
    return owner


@pytest.mark.parametrize("host", [done_once, as_it_is])
def test_lm_eval_is_stock_again_afterwards_even_after_an_error(host):
    before, within = _names(), []

    def fail():
        with host():
            within.extend(_names())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert any(a is not b for a, b in zip(before, within, strict=True))
    assert all(a is b for a, b in zip(before, _names(), strict=True))


@pytest.mark.parametrize("which", range(len(SUBSTITUTIONS)))
@pytest.mark.parametrize(
    "gone", [{"module": "lm_eval.nowhere"}, {"name": "nothing"}, {"name": "Nothing.eval_docs"}], ids=str
)
def test_a_name_that_lm_eval_no_longer_has_is_left_to_stock_and_said_in_one_line(
    which, gone, miniature, monkeypatch, caplog, capsys
):
    one = {"tasks": {"arc_easy": miniature["tasks"]["arc_easy"]}}
    stock = _text(_evaluated(one))
    other = list(SUBSTITUTIONS)
    other[which] = replace(other[which], **gone)
    monkeypatch.setattr(lm_eval_host, "SUBSTITUTIONS", tuple(other))
    with caplog.at_level(logging.WARNING, "mambalab"), done_once():
        assert _text(_evaluated(one)) == stock
    (line,) = [record.getMessage() for record in caplog.records if record.name == "mambalab"]
    assert line.startswith("lm-eval 0.")
    assert f"{other[which].module}.{other[which].name}" in line
    assert other[which].spares in line


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(LITERALS)
def test_literals_are_parsed_as_ast_does_and_belong_to_their_caller(value):
    parse = lm_eval_host.parsed_literals(ast).literal_eval
    first = parse(repr(value))
    assert repr(first) == repr(ast.literal_eval(repr(value)))
    if isinstance(first, list):
        first.append("changed")
    assert repr(parse(repr(value))) == repr(value)


def test_a_nested_literal_that_a_caller_changes_is_whole_at_the_next_call():
    parse = lm_eval_host.parsed_literals(ast).literal_eval
    parse("[[1], {'a': [2]}]")[0].append(3)
    parse("[[1], {'a': [2]}]")[1]["a"].clear()
    assert parse("[[1], {'a': [2]}]") == [[1], {"a": [2]}]


@pytest.mark.parametrize("text", ["[1,", "f(1)", "", "1 +", "{1: [}"])
def test_what_is_no_literal_is_the_error_that_ast_gives(text):
    parse = lm_eval_host.parsed_literals(ast).literal_eval
    for _ in range(2):
        with pytest.raises((SyntaxError, ValueError)) as ours:
            parse(text)
        with pytest.raises(type(ours.value)) as stock:
            ast.literal_eval(text)
        # An address may follow.
        assert str(ours.value).split(" at 0x")[0] == str(stock.value).split(" at 0x")[0]
    assert parse(ast.parse("[1]", mode="eval")) == [1]


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
)


def _default(value):
    return value.tolist() if isinstance(value, np.ndarray) else f"<{value}>"


@given(DOCUMENTS)
def test_quick_json_is_the_standard_librarys_to_the_byte(document):
    options = {"indent": 2, "default": _default, "ensure_ascii": False}
    assert lm_eval_host.quick_indents(json).dumps(document, **options) == json.dumps(document, **options)


UNUSUAL = {
    "a tuple": {"a": [(1, "é")]},
    "a set": {"a": {1}},
    "an array": {"a": [np.arange(2)]},
    "a date": [datetime(2026, 1, 2)],
    "keys of other types": {1: {None: 2}, 0.5: 3},
    "a text of a class of its own": [type("Text", (str,), {})("x")],
    "a list of a class of its own": {"a": type("List", (list,), {})([1])},
}


OPTIONS = [{"indent": 2, "ensure_ascii": False}, {"indent": 2}, {"indent": 4, "ensure_ascii": False}, {}]


@pytest.mark.parametrize("document", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.parametrize(
    "options", [{"indent": 2, "ensure_ascii": False}, {"indent": 2}, {"sort_keys": False}], ids=str
)
def test_what_quick_json_does_not_know_is_left_to_the_standard_library(document, options):
    options = options | {"default": _default}
    assert lm_eval_host.quick_indents(json).dumps(document, **options) == json.dumps(document, **options)


def test_a_document_deeper_than_the_stack_is_the_error_that_the_standard_library_gives():
    deep: list = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    with pytest.raises(RecursionError):
        lm_eval_host.quick_indents(json).dumps(deep, indent=2, ensure_ascii=False)


SETS = {
    "texts and numbers": {"a": ["x", "é", None], "b": [1, None, 3], "c": [0.5, float("inf"), -0.0]},
    "lists and mappings": {"a": [["x"], [], None], "b": [{"c": [1], "d": "y"}, {"c": [], "d": None}, None]},
    "lists of mappings": {"a": [[{"b": 1}, {"b": 2}], [], [{"b": None}]]},
    "dates and bytes": {"a": [datetime(2026, 1, 2), None, datetime(1970, 1, 1)], "b": [b"x", b"", None]},
    "nothing but nulls": {"a": [None, None, None]},
    "no rows": {"a": []},
    "more rows than a batch": {"a": list(range(1000)), "b": [[str(i)] for i in range(1000)]},
}


@pytest.mark.parametrize("columns", SETS.values(), ids=SETS)
def test_rows_decoded_together_are_the_rows(columns):
    docs = datasets.Dataset.from_dict(columns)
    rows = in_rows(docs)
    assert isinstance(rows, Rows)
    assert repr(list(rows)) == repr(list(docs)) == repr(list(rows))
    assert (len(rows), rows.column_names, rows.features) == (len(docs), docs.column_names, docs.features)
    assert not len(docs) or rows[0] == docs[0]


def test_classes_and_chosen_rows_are_as_they_were():
    features = datasets.Features({"a": datasets.ClassLabel(names=["x", "y"]), "b": datasets.Value("int8")})
    docs = datasets.Dataset.from_dict({"a": [0, 1, 1], "b": [1, 2, 3]}, features=features).select([2, 0])
    assert list(in_rows(docs)) == list(docs) == [{"a": 1, "b": 3}, {"a": 0, "b": 1}]


def test_rows_that_a_caller_changes_are_whole_in_the_next_pass():
    rows = in_rows(datasets.Dataset.from_dict({"a": [["x"], ["y"]]}))
    for row in rows:
        row["a"].clear()
    assert [row["a"] for row in rows] == [["x"], ["y"]]


LEFT = {
    "a list": [{"a": 1}],
    "arrays": datasets.Dataset.from_dict(
        {"a": [[[1]]]}, features=datasets.Features({"a": datasets.Array2D((1, 1), "int8")})
    ),
    "a format": datasets.Dataset.from_dict({"a": [1]}).with_format("numpy"),
    "no columns": datasets.Dataset.from_dict({}),
}


@pytest.mark.parametrize("docs", LEFT.values(), ids=LEFT)
def test_documents_of_other_kinds_are_left_alone(docs):
    assert in_rows(docs) is docs


@pytest.mark.parametrize("host", [done_once, as_it_is])
def test_no_nameless_bar_is_written_where_nobody_watches(host, miniature, capfd):
    run_tasks(Instant(), miniature, num_fewshot=None, limit=None, seed=1, host=host)
    assert capfd.readouterr().err == ""


def test_on_a_terminal_the_bar_has_a_name(miniature, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with done_once():
        _evaluated({"tasks": {"piqa": miniature["tasks"]["piqa"]}})
    assert "building requests" in capsys.readouterr().err


def test_a_task_processes_its_documents_once_and_leaves_no_folder_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    processed = []
    stock = datasets.Dataset.map
    monkeypatch.setattr(datasets.Dataset, "map", lambda docs, *a, **k: processed.append(docs) or stock(docs, *a, **k))
    task = load_tasks(("hellaswag",), MINIATURE)["tasks"]["hellaswag"]
    count = len(processed)
    assert task.eval_docs is task.eval_docs
    assert len(processed) == count > 0
    assert list(tmp_path.iterdir()) == []
    process = lm_eval.api.task.ConfigurableTask.dump_config(task)["process_docs"]
    assert process == inspect.getsource(inspect.unwrap(task.config.process_docs))
    assert process.startswith("def process_docs(dataset")
