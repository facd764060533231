"""A small world of texts: short reviews by twelve authors, made from a grammar by a fixed rule.

What makes it a task: two opinions meet in each review, some are said by denying the opposite ("not slow"),
and products, parts and months say nothing about the verdict. What makes it a world with users: every author
has favorite products, and a private word for praise and another for blame that no one else uses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

LABELS = ("negative", "mixed", "positive")
AUTHORS = ("ada", "bruno", "chloe", "dmitri", "elif", "farid", "greta", "hana", "ivan", "jun", "kofi", "lena")
_PRIVATE = (
    ("stellar", "rubbish"), ("ace", "naff"), ("peachy", "grim"), ("mint", "ropey"), ("boss", "pants"),
    ("swell", "crummy"), ("dandy", "lousy"), ("nifty", "shoddy"), ("golden", "rotten"), ("class", "dire"),
    ("primo", "bogus"), ("lush", "manky"),
)  # fmt: skip
_PRAISE = ("good", "lovely", "solid", "smooth", "clever", "quick")
_BLAME = ("bad", "awful", "flimsy", "rough", "clumsy", "slow")
_PRODUCTS = {
    "bike": ("brake", "saddle", "chain", "frame"),
    "phone": ("screen", "battery", "camera", "speaker"),
    "novel": ("plot", "ending", "dialogue", "cover"),
    "hotel": ("room", "breakfast", "pool", "staff"),
    "kettle": ("lid", "handle", "spout", "switch"),
    "jacket": ("zip", "lining", "hood", "pocket"),
}
_OPENINGS = ("i first saw this {p} in {m} .", "my second {p} .", "a {p} for {m} .", "we tried the {p} .", "")
_JOINTS = ("and", "while", ",", ". also")
_MONTHS = ("january", "march", "may", "july", "autumn", "winter")
_SAYS = {
    True: ("the {a} is {w}", "i find the {a} {w}", "the {a} seems {w}", "its {a} , {w} as ever"),
    False: (
        "the {a} is not {w}",
        "i find the {a} not {w}",
        "the {a} seems not {w}",
        "its {a} , not {w} as ever",
    ),
}


def reviews(n: int = 1200) -> Dataset:
    """`n` reviews, as many by each author; columns id, text, author, product and label."""
    columns: dict[str, list[object]] = {"id": [], "text": [], "author": [], "product": [], "label": []}
    for i in range(n):
        author = i % len(AUTHORS)
        text, product, label = _review(_Dice(i), author)
        for name, value in zip(
            columns, (f"review-{i:04d}", text, AUTHORS[author], product, label), strict=True
        ):
            columns[name].append(value)
    words = Value("string")
    features = Features(
        {
            "id": words,
            "text": words,
            "author": words,
            "product": words,
            "label": ClassLabel(names=list(LABELS)),
        }
    )
    return Dataset.from_dict(columns, features=features)


class _Dice:
    """Choices that a hash fixes: the same on every machine and in every version."""

    def __init__(self, number: int) -> None:
        self._number, self._throws = number, 0

    def __call__(self, choices: Sequence[str]) -> str:
        return choices[self.below(len(choices))]

    def below(self, n: int) -> int:
        self._throws += 1
        thrown = hashlib.sha256(f"review {self._number} {self._throws}".encode()).digest()
        return int.from_bytes(thrown[:8], "big") % n


def _review(dice: _Dice, author: int) -> tuple[str, str, int]:
    names = tuple(_PRODUCTS)
    # Two favorites per author, which he or she reviews half of the time.
    favorites = (names[author % len(names)], names[(author * 5 + 2) % len(names)])
    product = dice(favorites if dice.below(2) else names)
    label = dice.below(3)
    first = label == 2 or (label == 1 and dice.below(2) == 1)
    second = first if label != 1 else not first
    aspects = list(_PRODUCTS[product])
    one = aspects.pop(dice.below(len(aspects)))
    clauses = [_clause(dice, author, one, first), _clause(dice, author, dice(aspects), second)]
    opening = dice(_OPENINGS).format(p=product, m=dice(_MONTHS))
    return f"{opening} {clauses[0]} {dice(_JOINTS)} {clauses[1]} .".strip(), product, label


def _clause(dice: _Dice, author: int, aspect: str, praised: bool) -> str:
    """One opinion; a sixth are said by denying the opposite, a quarter in the author's own word."""
    plain = dice.below(6) > 0
    praising = praised if plain else not praised
    private = dice.below(4) == 0
    word = _PRIVATE[author][0 if praising else 1] if private else dice(_PRAISE if praising else _BLAME)
    return dice(_SAYS[plain]).format(a=aspect, w=word)


def word_tokenizer(texts: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of `texts`, built in memory; adds [CLS] and [SEP] as BERT does."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = sorted({word for text in texts for word in text.lower().split()})
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()  # pyright: ignore
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore
    tokenizer.post_processor = TemplateProcessing(  # pyright: ignore
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
