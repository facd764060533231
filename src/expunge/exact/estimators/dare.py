"""DaRE: a random forest that forgets."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from expunge.exact.estimators.base import BadRows, Decremental

_LEFT, _RIGHT, _FEATURES, _VALUES = (np.uint64(n) for n in range(1, 5))


def _mixed(key: np.uint64, salt: np.uint64, words: np.ndarray) -> np.ndarray:
    """One uniform 64-bit number for each word, a function of key and salt (finalizer of SplitMix64, twice)."""
    state = words.astype(np.uint64)
    with np.errstate(over="ignore"):
        for shift in (key, salt * np.uint64(0x9E3779B97F4A7C15)):
            state = state + shift + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def _child(key: np.uint64, side: np.uint64) -> np.uint64:
    return _mixed(key, side, np.zeros(1, dtype=np.uint64))[0]


class Splits:
    """Splits ``x[feature] <= value`` that a node may choose from, and how many rows each sends to the left.

    They are sampled without randomness of their own: features, and the values of a feature, are ordered by a hash of
    themselves under the node's key, and the first in order are taken. Which they are is thus a function of the rows that
    are there, and as rows can only take values away, a sample stands until one of its own values is lost.
    """

    def __init__(
        self, feature: np.ndarray, value: np.ndarray, equal: np.ndarray, left: np.ndarray, whole: np.ndarray
    ) -> None:
        self.feature = feature
        self.value = value
        self.equal = equal
        """`[s]` rows that have this very value."""
        self.left = left
        """`[s, C]` rows of each class that go left."""
        self.whole = whole
        """`[s]` whether the feature has no other values to choose from, so that a lost one has no substitute."""

    def best(self, counts: np.ndarray) -> int:
        """The split of least Gini impurity, the first in order of several.

        That is the largest ``sum_c L_c^2 / L + sum_c R_c^2 / R``. Sums are of integers, so equal rows give equal bits.
        """
        right = counts - self.left
        score = (self.left**2).sum(1) / self.left.sum(1) + (right**2).sum(1) / right.sum(1)
        return int(score.argmax())

    def at(self, split: int) -> tuple[int, float]:
        """Feature and value of a split."""
        return int(self.feature[split]), float(self.value[split])

    def remove(self, x: np.ndarray, codes: np.ndarray) -> None:
        """Take rows out of the counts."""
        asked = x[:, self.feature]
        goes = asked <= self.value
        for code in np.unique(codes):
            self.left[:, code] -= goes[codes == code].sum(0)
        self.equal -= (asked == self.value).sum(0)

    def keep(self, stays: np.ndarray) -> bool:
        """Drop the other splits; False where that would need substitutes."""
        if not self.whole[~stays].all() or len(np.unique(self.feature[stays])) < len(np.unique(self.feature)):
            return False
        for name in ("feature", "value", "equal", "left", "whole"):
            setattr(self, name, getattr(self, name)[stays])
        return True


class Node:
    """A leaf, which holds its rows, or a split with two children."""

    __slots__ = ("chosen", "counts", "depth", "key", "left", "right", "rows", "splits")

    def __init__(self, key: np.uint64, depth: int, counts: np.ndarray, rows: np.ndarray) -> None:
        self.key = key
        self.depth = depth
        self.counts = counts
        self.splits: Any = None
        self.chosen: tuple[int, float] | None = None
        self.left: Any = None
        self.right: Any = None
        self.rows: Any = rows

    def gather(self) -> np.ndarray:
        """Numbers of the rows in all leaves below."""
        if self.chosen is None:
            return self.rows
        return np.concatenate([self.left.gather(), self.right.gather()])

    def add_shares(self, x: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Add the class shares of the leaves that rows `places` of `x` end in to `out`."""
        if self.chosen is None:
            out[places] += self.counts / self.counts.sum()
            return
        feature, value = self.chosen
        goes = x[places, feature] <= value
        for child, part in ((self.left, places[goes]), (self.right, places[~goes])):
            if len(part):
                child.add_shares(x, part, out)


class DaREForestClassifier(ClassifierMixin, Decremental):
    """Random forest whose trees forget rows by rebuilding no more than what would have grown otherwise.

    Every node compares splits ``x_j <= v`` of `max_features` sampled columns and `k` sampled values of each, and takes
    the one of least Gini impurity; nodes above depth `topd` take a random one. Each split carries how many rows of each
    class it sends left. When rows leave, the counts on their path fall, and the subtree of a node is grown again only if
    another split is best now. All rows train all trees: a bootstrap sample would depend on how many rows there are.

    What a node samples is decided by hashes under a key made of `random_state`, the tree, and the path to the node.
    Forgetting therefore gives, bit for bit, the forest that is grown with the same `random_state` on what remains,
    whatever the order of requests; over random states it has the law of a forest that never saw the rows.
    Additions grow the forest again.

    Columns are taken as they are; scale or bin them by numbers that do not come from the rows, or forgotten rows stay in
    the scale. Nodes hold values and counts of rows; attacks find members by pure leaves, which `min_samples_leaf` avoids.

    Deviations from Brophy & Lowd (ICML 2021, arXiv:2009.05567): any number of classes; a threshold is the largest value
    that goes left instead of the middle of a gap, whose other end a removal would move; it is sampled from all values,
    not only from those between classes; and a random node draws it from the values, not from the range.

    Args:
        n_estimators: trees.
        max_depth: of a tree, 1 or more.
        k: values of a column that a node compares.
        topd: levels of random nodes; the more, the faster is forgetting and the lower is accuracy.
        max_features: columns that a node compares: a number, 'sqrt' of all, or None for all. Constant ones do not count.
        min_samples_split: a node of fewer rows is a leaf.
        min_samples_leaf: fewest rows of a leaf.
        random_state: seed.

    Attributes:
        classes_: `[C]` classes that have rows.
        regrown_: rows of all subtrees, over all trees, that were grown again by forgetting since the last fit.
    """

    guarantee = "bitwise (equal random_state)"
    _parts = {"Node": Node, "Splits": Splits}

    def __init__(
        self,
        n_estimators: int = 100,
        max_depth: int = 10,
        k: int = 25,
        topd: int = 0,
        max_features: int | Literal["sqrt"] | None = "sqrt",
        min_samples_split: int = 2,
        min_samples_leaf: int = 1,
        random_state: Any = None,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.k = k
        self.topd = topd
        self.max_features = max_features
        self.min_samples_split = min_samples_split
        self.min_samples_leaf = min_samples_leaf
        self.random_state = random_state

    def _validate_parameters(self) -> None:
        fewest = {"n_estimators": 1, "max_depth": 1, "k": 1, "topd": 0}
        fewest |= {"min_samples_split": 2, "min_samples_leaf": 1}
        for name, least in fewest.items():
            if not getattr(self, name) >= least:
                raise BadRows(f"{name} must be {least} or more, got {getattr(self, name)}")
        m = self.max_features
        if m not in (None, "sqrt") and (isinstance(m, str) or not m >= 1):
            raise BadRows(f"max_features must be 1 or more, 'sqrt' or None, got {m!r}")

    def _refit(self) -> None:
        seeds = check_random_state(self.random_state).randint(2**31, size=2)
        self._seed = np.uint64(int(seeds[0]) << 31 | int(seeds[1]))
        self._grow_all()

    def _add(self, x: np.ndarray, y: Any) -> None:
        self._grow_all()

    def _grow_all(self) -> None:
        # Adding 0.0 makes -0.0 of the same bits as the 0.0 it equals, for they are hashed.
        self._x = np.asfortranarray(self.rows_.x + 0.0)
        self._labels, self._codes = np.unique(np.array(self.rows_.y.tolist()), return_inverse=True)
        self._alive = np.ones(len(self._x), dtype=bool)
        self._numbers = np.arange(len(self._x))
        keys = _mixed(self._seed, np.uint64(0), np.arange(self.n_estimators))
        self._trees = [self._grow(self._numbers, key, 0) for key in keys]
        self.regrown_ = 0
        self._publish()

    def _remove(self, x: np.ndarray, y: Any, ranks: np.ndarray) -> None:
        gone = self._numbers[ranks]
        self._numbers = np.delete(self._numbers, ranks)
        self._alive[gone] = False
        for tree in self._trees:
            self._prune(tree, gone)
        self._x[gone] = 0.0
        self._codes[gone] = 0
        self._publish()

    def _publish(self) -> None:
        self.classes_ = self._labels[self._trees[0].counts > 0]

    def _grow(self, rows: np.ndarray, key: np.uint64, depth: int) -> Node:
        counts = np.bincount(self._codes[rows], minlength=len(self._labels))
        node = Node(key, depth, counts, rows)
        if self._may_split(node):
            node.splits = self._sample(rows, key, depth)
            self._split(node, rows)
        return node

    def _may_split(self, node: Node) -> bool:
        pure = np.count_nonzero(node.counts) < 2
        return node.depth < self.max_depth and not pure and node.counts.sum() >= self.min_samples_split

    def _split(self, node: Node, rows: np.ndarray) -> None:
        """Take the best of the node's splits, and grow what is below; a node without any is a leaf."""
        if node.splits is None:
            self._close(node, rows)
            return
        feature, value = node.splits.at(node.splits.best(node.counts))
        goes = self._x[rows, feature] <= value
        node.chosen, node.rows = (feature, value), None
        node.left = self._grow(rows[goes], _child(node.key, _LEFT), node.depth + 1)
        node.right = self._grow(rows[~goes], _child(node.key, _RIGHT), node.depth + 1)

    def _close(self, node: Node, rows: np.ndarray) -> None:
        node.rows = rows
        node.splits = node.chosen = node.left = node.right = None

    def _sample(self, rows: np.ndarray, key: np.uint64, depth: int) -> Splits | None:
        d, classes, random = self._x.shape[1], len(self._labels), depth < self.topd
        wanted = d if self.max_features is None else self.max_features
        wanted = 1 if random else max(1, int(d**0.5)) if wanted == "sqrt" else int(wanted)
        k = 1 if random else int(self.k)
        codes, parts = self._codes[rows], []
        priority = _mixed(key, _FEATURES, np.arange(d))
        for feature in np.argsort(priority, kind="stable"):
            column = self._x[rows, feature]
            values, equal = np.unique(column, return_counts=True)
            below = equal.cumsum()
            fits = np.minimum(below, len(rows) - below) >= self.min_samples_leaf
            values, equal = values[fits], equal[fits]
            if not len(values):
                continue
            whole = len(values) <= k
            if not whole:
                hashes = _mixed(np.uint64(priority[feature]), _VALUES, values.view(np.uint64))
                taken = np.sort(np.argpartition(hashes, k - 1)[:k])
                values, equal = values[taken], equal[taken]
            cells = np.searchsorted(values, column) * classes + codes
            table = np.bincount(cells, minlength=(len(values) + 1) * classes).reshape(-1, classes)
            n = len(values)
            parts.append((np.full(n, feature), values, equal, table[:n].cumsum(0), np.full(n, whole)))
            if len(parts) == wanted:
                break
        return Splits(*(np.concatenate(part) for part in zip(*parts, strict=True))) if parts else None

    def _prune(self, node: Node, gone: np.ndarray) -> None:
        """Take rows out of a subtree, some of which were in it."""
        x, codes = self._x[gone], self._codes[gone]
        node.counts = node.counts - np.bincount(codes, minlength=len(node.counts))
        if node.chosen is None or not self._may_split(node):
            rows = node.gather()
            self._close(node, rows[self._alive[rows]])
            return
        node.splits.remove(x, codes)
        left = node.splits.left.sum(1)
        fits = np.minimum(left, node.counts.sum() - left) >= self.min_samples_leaf
        fits &= node.splits.equal > 0
        if not fits.all() and not node.splits.keep(fits):
            rows = node.gather()
            node.splits = self._sample(rows[self._alive[rows]], node.key, node.depth)
        if node.splits is None or node.splits.at(node.splits.best(node.counts)) != node.chosen:
            rows = node.gather()
            rows = rows[self._alive[rows]]
            self.regrown_ += len(rows)
            self._split(node, rows)
            return
        goes = x[:, node.chosen[0]] <= node.chosen[1]
        for child, part in ((node.left, gone[goes]), (node.right, gone[~goes])):
            if len(part):
                self._prune(child, part)

    def predict_proba(self, X: Any) -> np.ndarray:
        """`[n, classes]` means over trees of the class shares of leaves."""
        check_is_fitted(self)
        x: Any = validate_data(self, X, reset=False, dtype=np.float64)
        total = np.zeros((len(x), len(self._labels)))
        for tree in self._trees:
            tree.add_shares(x, np.arange(len(x)), total)
        return total[:, self._trees[0].counts > 0] / len(self._trees)

    def predict(self, X: Any) -> np.ndarray:
        """`[n]` most likely classes; the first in order where several are."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]
