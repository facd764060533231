"""Public contract suites: check your own method, attack, metric, family or benchmark against what expunge promises.

Each ``check_*`` is a generator of `Check` objects, so that pytest can show them one by one::

    @pytest.mark.parametrize("check", check_method(MyMethod), ids=str)
    def test_contract(check):
        check()
"""

from expunge.testing.attacks import check_attack
from expunge.testing.benchmarks import check_benchmark
from expunge.testing.checks import Check, ContractBroken
from expunge.testing.families import check_family
from expunge.testing.methods import check_method
from expunge.testing.metrics import check_metric
from expunge.testing.problems import tiny_problem, tiny_problems

__all__ = [
    "Check",
    "ContractBroken",
    "check_attack",
    "check_benchmark",
    "check_family",
    "check_method",
    "check_metric",
    "tiny_problem",
    "tiny_problems",
]
