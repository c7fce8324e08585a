"""What is old goes: whole partitions of klines, and rows of metrics, signals and order history, by a policy.

`plan(connection, parse("1m 2y, quality 90d"))` tells what would go and what would remain, and changes nothing;
`apply(settings, plan)` then removes that, and nothing else. It can be killed at any moment and run again.
"""

from helios.retention.applying import Removed, apply
from helios.retention.planning import Part, Plan, Share, State, plan
from helios.retention.policy import Age, Policy, Rule, Subject, parse

__all__ = ["Age", "Part", "Plan", "Policy", "Removed", "Rule", "Share", "State", "Subject", "apply", "parse", "plan"]
