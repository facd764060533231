"""What is to be forgotten: the condition language, random shares, ids, classes, users, and every refusal."""

from __future__ import annotations

import hashlib
import json
import operator
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.conditions import Condition, matching, parse
from expunge.data.order import shuffled
from expunge.data.selection import Selection, read_ids
from expunge.errors import BadInput
from expunge.families import Classifier, Regressor, Table
from expunge.files import canonical_json

OPERATORS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt,
    "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
NOON = datetime.fromisoformat("2020-01-01 12:00:00")
PEOPLE = Dataset.from_dict(
    {
        "id": ["p0", "p1", "p2", "p3", "p4"],
        "age": [17, 30, 42, None, 30],
        "height": [1.5, 1.8, 0.1, 1.7, None],
        "city": ["Rome", "New York", "Oslo", None, "Rome"],
        "zip": ["00100", "10001", "0150", "1", "00100"],
        "member": [True, False, True, None, False],
        "joined": [date(2020, 1, 1), date(2021, 6, 5), date(2022, 3, 3), None, date(2020, 1, 2)],
        "seen": [NOON, NOON + timedelta(days=366), None, NOON + timedelta(days=731), NOON - timedelta(hours=1)],
        "label": [0, 1, 2, 1, 0],
        "list": [[1], [2], [3], [4], [5]],
    },
    features=Features(
        {
            "id": Value("string"), "age": Value("int8"), "height": Value("float32"), "city": Value("string"),
            "zip": Value("string"), "member": Value("bool"), "joined": Value("date32"),
            "seen": Value("timestamp[s]"), "label": ClassLabel(names=["cat", "dog", "2"]), "list": Sequence(Value("int64")),
        }
    ),
)  # fmt: skip
FAMILY = Classifier(Table(["age"]), ["cat", "dog", "2"])


def rows(expression: str) -> list[int]:
    return np.flatnonzero(matching(PEOPLE, parse(expression))).tolist()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("age < 30", [0]),
        ("age <= 30", [0, 1, 4]),
        ("age != 30", [0, 2]),
        ("age < 300", [0, 1, 2, 4]),  # beyond the column's own type
        ("age > 29.5", [1, 2, 4]),
        ("height == 0.1", [2]),  # exact in float32, which is what the column holds
        ("city == Rome", [0, 4]),
        ("city == 'New York'", [1]),
        ('city in [Oslo, "New York"]', [1, 2]),
        ("city != Rome", [1, 2]),
        ("zip == 00100", [0, 4]),  # text stays text
        ("member == true", [0, 2]),
        ("joined >= 2020-01-02", [1, 2, 4]),
        ("seen < '2020-01-01 12:00:00'", [4]),
        ("label == dog", [1, 3]),
        ("label == 1", [1, 3]),
        ("label == 2", [2]),
        ("label in [cat, 2]", [0, 2, 4]),
        ("age >= 30 and city == Rome AND member == false", [4]),
        ("  age<30  ", [0]),
    ],
)
def test_conditions_worked_out_by_hand(expression: str, expected: list[int]) -> None:
    assert rows(expression) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("age", "has nothing where an operator must be"),
        ("age <", "has nothing where a column or a value must be"),
        ("", "has nothing where a column or a value must be"),
        ("age = 3", "has a single '='; equality is written '=='"),
        ("age ~ 3", "has '~' where an operator must be"),
        ("age < 3 or age > 5", "cannot be read at 'or': conditions are joined by 'and'"),
        ("city == New York", "cannot be read at 'York'.*values that contain spaces are quoted"),
        ("city in Rome", "after 'in' comes a list in brackets"),
        ("city in [Rome", "after 'in' comes a list in brackets"),
        ("city in []", r"has '\]' where a column or a value must be"),
        ("city == 'Rome", "cannot be read at ''Rome'"),
        ("agee < 3", "no column 'agee'; did you mean 'age'?"),
        ("age < old", "column 'age' holds whole numbers; 'old' is not of that kind"),
        ("height < tall", "column 'height' holds numbers; 'tall' is not"),
        ("member == perhaps", "column 'member' holds true or false; 'perhaps' is not"),
        ("joined < yesterday", "column 'joined' holds dates or times such as 2026-01-31; 'yesterday' is not"),
        ("list == 3", "column 'list' holds .* values, which cannot be compared with '3'"),
        ("label < 2", "holds class labels, which have no order"),
        ("label == dgo", "'label' has no class 'dgo'; did you mean 'dog'?"),
        ("__import__('os') == 1", "has 'os' where an operator must be"),
    ],
)
def test_refusals_of_conditions(expression: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        matching(PEOPLE, parse(expression))


words = st.text(alphabet="abc xyz0123456789_-.", min_size=1).filter(str.strip)


@given(
    numbers=st.lists(st.one_of(st.none(), st.integers(-1000, 1000)), min_size=1, max_size=8),
    texts=st.lists(words, min_size=8, max_size=8),
    bound=st.integers(-1000, 1000),
    word=words,
    first=st.sampled_from(sorted(OPERATORS)),
    second=st.sampled_from(sorted(OPERATORS)),
)
@settings(max_examples=60, deadline=None)
def test_matching_equals_a_loop_in_python(numbers, texts, bound, word, first, second) -> None:
    texts = texts[: len(numbers)]
    data = Dataset.from_dict(
        {"the n": numbers, "t": texts}, features=Features({"the n": Value("int64"), "t": Value("string")})
    )
    expression = f"'the n' {first} {bound} and t {second} \"{word}\""
    assert parse(expression) == [Condition("the n", first, (str(bound),)), Condition("t", second, (word,))]
    slow = [
        n is not None and OPERATORS[first](n, bound) and OPERATORS[second](t, word)
        for n, t in zip(numbers, texts, strict=True)
    ]
    assert matching(data, parse(expression)).tolist() == slow


@given(values=st.lists(words, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_lists_of_values_survive_quoting(values: list[str]) -> None:
    listed = ", ".join(f"'{v}'" for v in values)
    assert parse(f"c in [{listed}]") == [Condition("c", "in", tuple(values))]


def test_order_is_by_hash_and_does_not_depend_on_the_rows_order() -> None:
    ids = [f"row-{i}" for i in range(200)]
    slow = sorted(ids, key=lambda i: hashlib.sha256(f"7:{i}".encode()).hexdigest())
    assert [ids[i] for i in shuffled(ids, 7)] == slow
    assert [ids[::-1][i] for i in shuffled(ids[::-1], 7)] == slow
    assert shuffled(ids, 7) != shuffled(ids, 8)


def table(n: int) -> Dataset:
    return Dataset.from_dict(
        {"id": [f"row-{i}" for i in range(n)], "age": list(range(n)), "label": [i % 3 for i in range(n)]}
    )


def test_fraction_is_stable_nested_and_of_the_right_size() -> None:
    data = table(1000)
    tenth, scope = Selection(fraction=0.1).apply(data, FAMILY)
    assert len(tenth) == 100 and scope == "a random 0.1 of the rows (seed 0)"
    assert tenth == Selection(fraction=0.1).apply(data, FAMILY)[0]
    assert set(tenth) == set(Selection(fraction=0.1).apply(data.select(range(999, -1, -1)), FAMILY)[0])
    assert set(tenth) < set(Selection(fraction=0.2).apply(data, FAMILY)[0])
    assert len(set(tenth) & set(Selection(fraction=0.1, seed=1).apply(data, FAMILY)[0])) < 30
    numbers = [int(i.removeprefix("row-")) for i in tenth]
    assert numbers == sorted(numbers)  # the data's order
    # A fair draw: mean of 100 of 0..999 without replacement has standard deviation 27.
    assert abs(np.mean(numbers) - 499.5) < 4 * 27.4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class=cat", Selection.model_validate({"class": "cat"})),
        ("fraction=0.1", Selection(fraction=0.1)),
        ("fraction=0.1,seed=4", Selection(fraction=0.1, seed=4)),
        ("user:city=New York", Selection(user={"city": "New York"})),
        ("where: age < 30", Selection(where="age < 30")),
        ("where:city == a=b", None),
        ("ids=list.csv", Selection(ids="list.csv")),
        ("some/list.txt", Selection(ids="some/list.txt")),
    ],
)
def test_short_forms(text: str, expected: Selection | None) -> None:
    if expected is None:
        with pytest.raises(BadInput, match="conditions are joined by 'and'|single '='"):
            Selection.parse(text)
    else:
        assert Selection.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["class=cat", "fraction=0.25,seed=3", "user:city=Rome", "where:age < 3", "ids=x.txt"]
)
def test_dumped_and_read_back(text: str) -> None:
    selection = Selection.parse(text)
    plain = json.loads(canonical_json(selection))
    assert "class_" not in plain and Selection(**plain) == selection
    assert selection.replace(seed=5).seed == 5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.txt", "p1\n\np4\n"),
        ("ids.json", '["p1", "p4"]'),
        ("ids.csv", "why,id\nasked,p1\nasked,p4\n"),
        ("one.csv", "person\np1\np4\n"),
        ("ids.jsonl", '{"id": "p1"}\n{"id": "p4"}\n'),
        ("ids", "p1\np4"),
    ],
)
def test_files_of_ids(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_ids(name, tmp_path) == ["p1", "p4"]
    assert Selection(ids=name).apply(PEOPLE, FAMILY, tmp_path) == (("p1", "p4"), "the listed ids")


def test_numbers_as_ids_match_their_text(tmp_path: Path) -> None:
    data = Dataset.from_dict({"id": ["7", "8", "9"], "age": [1, 2, 3], "label": [0, 1, 2]})
    (tmp_path / "ids.csv").write_text("id\n8\n")
    assert Selection(ids="ids.csv").apply(data, FAMILY, tmp_path)[0] == ("8",)
    assert Selection(ids=[9, "7"]).apply(data, FAMILY)[0] == ("7", "9")


@pytest.mark.parametrize(
    ("selection", "ids", "scope"),
    [
        ({"class": "dog"}, ("p1", "p3"), "all rows of class 'dog'"),
        ({"class": 2}, ("p2",), "all rows of class '2'"),
        ({"class": "0"}, ("p0", "p4"), "all rows of class 'cat'"),
        ({"user": {"city": "Rome"}}, ("p0", "p4"), "all rows of one user (column 'city')"),
        ({"user": {"city": ["Rome", "Oslo"]}}, ("p0", "p2", "p4"), "all rows of 2 users (column 'city')"),
        ({"user": {"age": 30}}, ("p1", "p4"), "all rows of one user (column 'age')"),
        ({"where": "age < 40"}, ("p0", "p1", "p4"), "rows where age < 40"),
        ({"ids": ["p3", "p0"]}, ("p0", "p3"), "the listed ids"),
    ],
)
def test_choices_worked_out_by_hand(selection: dict, ids: tuple[str, ...], scope: str) -> None:
    assert Selection(**selection).apply(PEOPLE, FAMILY) == (ids, scope)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            {"ids": [f"x{i:02d}" for i in range(25)]},
            r"25 of the 25 ids to forget are not in the data: x00, .*x19 and 5 more; check",
        ),
        ({"ids": ["p0", "zz"]}, "1 of the 2 ids to forget are not in the data: zz; check the id column"),
        ({"ids": []}, "the forget set is empty: the list of ids has no entries"),
        ({"ids": "absent.txt"}, "no file '.*absent.txt' to read the ids to forget from"),
        ({"where": "age > 100"}, "the forget set is empty: none of the 5 rows is among rows where age > 100"),
        (
            {"where": "id != zz"},
            "the forget set is the whole training set: all 5 rows .* use a fresh untrained model instead",
        ),
        ({"fraction": 0.05}, r"the forget set is empty: none of the 5 rows is among a random 0\.05"),
        ({"class": "dgo"}, "there is no class 'dgo'; did you mean 'dog'?"),
        ({"class": 7}, "there is no class '7'; known: 2, cat, dog"),
        ({"user": {"citty": "Rome"}}, "no column 'citty'; did you mean 'city'?"),
        (
            {"user": {"city": ["Rome", "Atlantis"]}},
            "column 'city' has no rows of Atlantis; check the spelling",
        ),
    ],
)
def test_refusals_of_choices(selection: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Selection(**selection).apply(PEOPLE, FAMILY)


def test_regressors_have_no_classes() -> None:
    with pytest.raises(
        BadInput, match="a regressor has no classes; choose rows by where, user, ids or fraction"
    ):
        Selection.model_validate({"class": 1}).apply(PEOPLE, Regressor(Table(["age"]), "height"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "forget: give exactly one of ids, where, class, user and fraction, not none"),
        ({"class": 1, "fraction": 0.1}, "not class and fraction"),
        ({"fraction": 0}, "'fraction' should be greater than 0, got 0"),
        ({"fraction": 1}, "'fraction' should be less than 1, got 1"),
        ({"user": {"a": 1, "b": 2}}, "user names 2 columns; give one"),
        ({"where": "age"}, "has nothing where an operator must be"),
        ({"fracton": 0.1}, "unknown key 'fracton'; did you mean 'fraction'?"),
    ],
)
def test_refusals_of_fields(fields: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Selection(**fields)


def test_what_is_no_selection() -> None:
    with pytest.raises(
        BadInput, match="'everything' does not say what to forget; give one of class=NAME, fraction=0.1"
    ):
        Selection.parse("everything")


def test_table_of_ids_without_an_id_column(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match="has the columns a, b and none called 'id'"):
        read_ids("ids.csv", tmp_path)
