"""Two live servers beside the simulation of them: the same texts, at the same times, by the same chooser."""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.common.study import remark
from benchmarks.scale.figures import FIRST, LATENCY, capacity, table_of
from benchmarks.scale.fleet import Plan
from benchmarks.scale.inputs import Inputs, of_servers
from benchmarks.scale.live import Live, arrive, live
from benchmarks.scale.load import Texts
from benchmarks.scale.quiet import watched
from benchmarks.scale.simulate import replay, texts_of
from benchmarks.serve.load import Outcome

TEXTS = Texts(kinds=50, shared=(32, 128), own=(16, 64), new=48, most_new=256)  # a context of 512 holds them
SHARES = (0.5, 0.8)
CHECKED = "ring", "two"  # choosers
FIGURES = ("first token p50", "first token p99", "whole text p50", "whole text p99", "tokens/s")
Pair = dict[str, dict[str, float]]


def checked(
    bundle: Path, precision: str, slots: int, seconds: float, rounds: int, cpus: Sequence[int]
) -> tuple[list[Inputs], dict[str, list[Pair]]]:
    """(inputs, measured anew in each round; what was measured and simulated, by load and round)."""
    inputs, found = list[Inputs](), dict[str, list[Pair]]()
    with ExitStack() as stack:
        servers = [stack.enter_context(live(bundle, precision, slots, cpu)) for cpu in cpus]
        cold = statistics.median(server.cold for server in servers)
        idle = statistics.median(server.memory("VmRSS") for server in servers)
        for turn in range(rounds):
            remark(f"round {turn + 1} of {rounds}: what the servers take")
            inputs.append(of_servers(bundle, precision, servers, TEXTS, cold=cold, idle=idle))
            for share in SHARES:
                for chooser in CHECKED:
                    load = f"{share:.0%}, {chooser}"
                    remark(f"round {turn + 1} of {rounds}: {load}")
                    found.setdefault(load, []).append(compared(servers, inputs[-1], chooser, share, seconds, turn))
    return inputs, found


def compared(servers: Sequence[Live], inputs: Inputs, chooser: str, share: float, seconds: float, turn: int) -> Pair:
    plan = Plan(speed=inputs.speed, replicas=len(servers), slots=inputs.slots, chooser=chooser)
    rate = share * len(servers) * capacity(plan, TEXTS)
    texts = texts_of(TEXTS, rate, seconds, seed=turn)
    with watched(server.process.pid for server in servers) as others:
        outcomes = arrive(servers, chooser, texts, inputs.vocabulary)
    return {
        "measured": of_outcomes(outcomes) | {"others": others[0]},
        "simulated": of_table(table_of(replay(plan, texts))),
    }


def of_outcomes(outcomes: Sequence[Outcome]) -> dict[str, float]:
    done = [each for each in outcomes if each.tokens]
    rows = [(each.arrived, 0.0, each.pieces[0], each.pieces[-1], float(each.tokens)) for each in done]
    return of_table(np.array(rows)) | {"refused": float(len(outcomes) - len(done))}


def of_table(ended: np.ndarray) -> dict[str, float]:
    """Milliseconds, and tokens a second from the first arrival to the last token."""
    arrived, latency = ended[:, 0], ended[:, LATENCY]
    found = {"tokens/s": float(ended[:, 4].sum() / ((arrived + latency).max() - arrived.min()))}
    for name, column in (("first token", FIRST), ("whole text", LATENCY)):
        found |= {f"{name} p{share}": 1e3 * float(np.percentile(ended[:, column], share)) for share in (50, 99)}
    return found


def difference(pair: Pair, figure: str) -> float:
    """How much more was simulated than measured, as a share."""
    return pair["simulated"][figure] / pair["measured"][figure] - 1
