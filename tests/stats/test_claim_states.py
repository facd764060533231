"""The state machine of claims: its known cases, and that nothing that is added ever raises a claim."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from expunge.stats.claims import LEVELS, Facts, Test, conclude

Test.__test__ = False  # type: ignore[attr-defined]

OUTPUT = Test("none", said=True, output=True, needed=("removal", "suppression"))
MEMBERSHIP = Test("none", needed=("removal",), symmetric=True)
RELEARNING = Test("none", needed=("removal",))
PROMPTS = Test("none", said=True, needed=("removal", "suppression"))
CLEAR = Facts("removal", "kept", (OUTPUT, MEMBERSHIP, RELEARNING, PROMPTS))

RANK = {"exact": 3, "removal": 2, "suppression": 1, "undecided": 0, "not forgotten": 0, "damaged": 0}
"""What a standing asserts."""
WORSE = {
    "none": ("undecided", "missing", "residue"),
    "away": ("undecided", "missing", "residue"),
    "undecided": ("residue",),
    "missing": ("residue",),
    "residue": (),
}
needs = st.sampled_from([(), ("removal",), ("removal", "suppression")])
findings = st.sampled_from(list(WORSE))
any_test = st.builds(
    Test, findings, said=st.booleans(), output=st.booleans(), needed=needs, symmetric=st.booleans()
)
any_facts = st.builds(
    Facts, st.sampled_from(LEVELS), st.sampled_from(["kept", "damaged", "undecided", "missing"]),
    st.lists(any_test, max_size=6).map(tuple), is_target=st.booleans(), keeps_target=st.booleans(),
    sensitive=st.sampled_from([(), ("removal",), ("suppression",), ("removal", "suppression")]),
    exact_by_construction=st.booleans(),
)  # fmt: skip


def with_finding(facts: Facts, test: Test, finding: str) -> Facts:
    return replace(facts, tests=tuple(replace(t, finding=finding) if t is test else t for t in facts.tests))


def standing(facts: Facts) -> str:
    return conclude(facts).standing


def test_known_cases():
    assert standing(CLEAR) == "removal" and conclude(CLEAR).residue == "not found"
    assert standing(replace(CLEAR, claimed="suppression")) == "suppression"  # never raised
    assert standing(replace(CLEAR, claimed="exact")) == "removal"  # no record
    assert standing(replace(CLEAR, claimed="exact", exact_by_construction=True)) == "exact"
    assert standing(with_finding(CLEAR, RELEARNING, "residue")) == "suppression"
    assert standing(with_finding(CLEAR, RELEARNING, "missing")) == "suppression"
    assert standing(with_finding(CLEAR, OUTPUT, "residue")) == "not forgotten"
    assert standing(with_finding(CLEAR, PROMPTS, "residue")) == "not forgotten"
    assert standing(with_finding(CLEAR, PROMPTS, "missing")) == "undecided"
    assert standing(replace(CLEAR, is_target=True)) == "not forgotten"
    assert standing(replace(CLEAR, utility="damaged")) == "damaged"
    assert standing(replace(CLEAR, utility="undecided")) == "undecided"


def test_tests_that_would_not_notice_the_target_clear_nobody():
    # Where only what looks inside notices it, what a model says shows nothing either; and the other way round.
    for seen, left in (((), "undecided"), (("suppression",), "suppression"), (("removal",), "removal")):
        blunt = replace(CLEAR, sensitive=seen)
        assert standing(blunt) == left
        assert (conclude(blunt).residue == "not found") == ("removal" in seen)
    assert standing(replace(CLEAR, sensitive=("removal",), claimed="suppression")) == "undecided"
    blunt = replace(CLEAR, sensitive=())
    assert standing(replace(blunt, claimed="exact", exact_by_construction=True)) == "exact"


def test_behaving_otherwise_is_no_residue_but_no_removal_either():
    refusing = with_finding(CLEAR, OUTPUT, "away")
    assert conclude(refusing).residue == "not found"
    assert standing(refusing) == "suppression"
    assert conclude(with_finding(CLEAR, MEMBERSHIP, "away")).residue == "found"


@given(any_facts)
def test_a_claim_is_never_raised(facts: Facts):
    found = conclude(facts)
    assert RANK[found.standing] <= RANK[facts.claimed]
    assert all(found.levels[level] == "not claimed" for level in LEVELS if RANK[level] > RANK[facts.claimed])


@given(any_facts, any_test)
def test_a_further_test_never_raises_a_claim(facts: Facts, test: Test):
    """Unless it is one that the claim could not stand without, and that was not even listed as missing."""
    for finding in ("missing", "undecided", "residue"):
        more = replace(facts, tests=(*facts.tests, replace(test, finding=finding)))
        assert RANK[standing(more)] <= RANK[standing(facts)]


@given(any_facts, st.data())
def test_a_worse_finding_never_raises_a_claim(facts: Facts, data: st.DataObject):
    if not facts.tests:
        return
    i = data.draw(st.integers(0, len(facts.tests) - 1))
    before = facts.tests[i]
    telling = (
        before.symmetric and before.finding == "away"
    )  # as bad as a residue, so that not knowing is no worse
    for finding in ("residue",) if telling else WORSE[before.finding]:
        tests = list(facts.tests)
        tests[i] = replace(tests[i], finding=finding)
        worse = conclude(replace(facts, tests=tuple(tests)))
        assert RANK[worse.standing] <= RANK[standing(facts)]
        if finding == "residue":
            assert worse.residue == "found"


@given(any_facts)
def test_a_destroyed_model_never_passes(facts: Facts):
    assert standing(replace(facts, utility="damaged")) == "damaged"


@given(any_facts)
def test_the_target_is_never_forgotten(facts: Facts):
    assert standing(replace(facts, is_target=True)) in ("not forgotten", "damaged")
    assert conclude(replace(facts, is_target=True)).residue == "found"


@given(any_facts)
def test_a_filter_is_never_called_removal(facts: Facts):
    found = conclude(replace(facts, keeps_target=True))
    assert found.standing not in ("exact", "removal") and found.residue == "found"


@given(any_facts)
def test_exact_needs_a_record(facts: Facts):
    assert standing(replace(facts, exact_by_construction=False)) != "exact"
