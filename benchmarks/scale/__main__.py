"""Many replicas: what one takes, a simulated day of a thousand, how many are enough, and a check against two live ones.

    python -m benchmarks.scale rates --json inputs.json         # measures one replica on one core: GPT-2 small in int8
    python -m benchmarks.scale day --chart docs/scale.svg       # a day of 1,000 replicas
    python -m benchmarks.scale spare                            # how many replicas keep the 99th percentile
    python -m benchmarks.scale check                            # two live servers of models/novelist, simulated too

docs/scale.md says what is simulated and how far that is from what was measured. `day` and `spare` take the inputs that
`rates` wrote (--inputs), by default those of docs/scale.md, and need no model.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.kept import NOVELIST, exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, count, number_from, remark
from benchmarks.common.turns import WIDTH, SideError
from benchmarks.scale import inputs as inputs_of
from benchmarks.scale.chart import draw
from benchmarks.scale.check import TEXTS, checked
from benchmarks.scale.choosers import CHOOSERS
from benchmarks.scale.figures import capacity, cost, figures, table_of
from benchmarks.scale.fleet import Plan
from benchmarks.scale.load import DAY, Texts
from benchmarks.scale.simulate import day, enough
from benchmarks.scale.tables import check_table, day_table, inputs_table, spare_table

COLD = 20.0  # seconds: a pod's scheduling, its image and its bundle's volume, besides what was measured


def main() -> None:
    parser = OneLineParser("python -m benchmarks.scale", __doc__)
    rates, whole, spare, check = parser.add_studies(
        rates="measures what one replica takes, on one core",
        day="simulates a day of many replicas, with failures and an update",
        spare="simulates how many replicas keep the 99th percentile at the peak",
        check="measures two live servers beside the simulation of them",
    )
    for study, how in ((rates, measure), (whole, simulate_day), (spare, simulate_spare), (check, compare)):
        study.set_defaults(study=how)
        study.add_argument("--json", type=Path, metavar="FILE", help="everything that was found")
    for study, default, slots in ((rates, None, 32), (check, NOVELIST, 8)):
        study.add_checkpoint(default)
        study.add_argument("--bundle", type=Path, metavar="DIR", help="a bundle that is there, instead of a checkpoint")
        study.add_argument("--precision", choices=("fp32", "int8", "int4"), default="int8", help="(default: int8)")
        study.add_argument("--slots", type=count, default=slots, help=f"(default: {slots})")
        study.add_rounds(3)
    check.add_argument("--seconds", type=count, default=30, help="how long texts arrive, each time (default: 30)")
    for study in (whole, spare):
        study.add_argument(
            "--inputs", type=Path, metavar="FILE", default=inputs_of.GPT2_SMALL, help="what `rates` wrote"
        )
        study.add_argument("--choosers", nargs="+", choices=CHOOSERS, default=list(CHOOSERS), metavar="CHOOSER")
        study.add_argument(
            "--failures", type=float, default=7.0, metavar="DAYS", help="between a replica's (default: 7)"
        )
        study.add_argument("--cold", type=float, default=COLD, metavar="S", help=f"of a new pod (default: {COLD:g})")
        study.add_argument("--share", type=float, default=0.05, help="of the replicas updated at once (default: 0.05)")
        study.add_argument("--seed", type=int, default=0)
    whole.add_argument("--replicas", type=partial(number_from, 2), default=1000, help="(default: 1000)")
    whole.add_argument("--peak", type=float, default=0.8, help="the load at its peak, of all slots full (default: 0.8)")
    whole.add_argument("--ratio", type=float, default=4.0, help="of peak and trough (default: 4)")
    whole.add_argument("--compress", type=float, default=60.0, help="times that the day is faster (default: 60)")
    whole.add_argument(
        "--price", type=float, default=0.04, help="of a core for an hour, $ (default: 0.04, an assumption)"
    )
    whole.add_argument("--chart", type=Path, metavar="FILE.svg", help="percentiles over the day")
    spare.add_argument("--own", nargs="+", type=count, default=[10, 100, 1000], help="replicas that the load fills")
    spare.add_argument("--bound", type=float, default=1.0, metavar="S", help="that 99 %% wait at most (default: 1)")
    options = parser.parse_args()
    try:
        found = options.study(options)
    except SideError as error:
        sys.exit(f"{parser.prog}: {error}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def show(title: str, machine: str, table: Any) -> None:
    console = Console(width=WIDTH, highlight=False)
    console.print(f"{title}\n{machine}\n", soft_wrap=True)
    console.print(table)


def bundle_of(options: argparse.Namespace) -> Path:
    return options.bundle or exported(options.checkpoint or seeded_checkpoint("small"), ("fp32", options.precision))


def measure(options: argparse.Namespace) -> Any:
    cpu = max(os.sched_getaffinity(0))
    found = inputs_of.measured(bundle_of(options), options.precision, options.slots, cpu, options.rounds, Texts())
    show(found.title, found.machine, inputs_table(found))
    return asdict(found)


def planned(options: argparse.Namespace, replicas: int) -> tuple[inputs_of.Inputs, Plan]:
    found = inputs_of.read(options.inputs)
    plan = Plan(
        speed=found.speed,
        replicas=replicas,
        slots=found.slots,
        cold=options.cold + found.cold,
        failures=1 / (options.failures * DAY),
        share=options.share,
        seed=options.seed,
    )
    return found, plan


def simulate_day(options: argparse.Namespace) -> Any:
    found, plan = planned(options, options.replicas)
    texts = Texts()
    peak = options.peak * options.replicas * capacity(plan, texts)
    days, drawn = dict[str, dict[str, Any]](), {}
    for chooser in options.choosers:
        remark(f"a day of {options.replicas:,} replicas: {chooser}")
        fleet = day(replace(plan, chooser=chooser), texts, peak=peak, ratio=options.ratio, compress=options.compress)
        ended = table_of(fleet)
        whole = figures(ended)
        hours = 24 / options.compress
        price = cost(options.replicas, hours, whole.tokens, cores=1, price=options.price)
        days[chooser] = {"figures": whole, "refused": fleet.refused, "again": fleet.again, "cost": price}
        drawn[chooser] = (fleet, ended)
    show(
        f"{options.replicas:,} replicas: {found.title}; {peak:,.0f} texts a second at the peak",
        found.machine,
        day_table(days),
    )
    if options.chart:
        draw(drawn, options.compress, options.chart)
    return {chooser: {**each, "figures": asdict(each["figures"])} for chooser, each in days.items()}


def simulate_spare(options: argparse.Namespace) -> Any:
    rows = []
    for own in options.own:
        for chooser in options.choosers:
            remark(f"a load that fills {own:,}: {chooser}")
            found, plan = planned(options, own)
            replicas, whole = enough(replace(plan, chooser=chooser), Texts(), own=own, bound=options.bound)
            rows.append({"own": own, "chooser": chooser, "replicas": replicas, "figures": whole})
    show(f"99 % wait at most {options.bound:g} s at the peak: {found.title}", found.machine, spare_table(rows))
    return [{**row, "figures": asdict(row["figures"])} for row in rows]


def compare(options: argparse.Namespace) -> Any:
    cpus = (sorted(os.sched_getaffinity(0)) * 2)[:2]
    found, pairs = checked(bundle_of(options), options.precision, options.slots, options.seconds, options.rounds, cpus)
    show(found[-1].title, found[-1].machine, inputs_table(found[-1]))
    show(f"two servers, {options.slots} slots each; {TEXTS}", "", check_table(pairs))
    return {"inputs": [asdict(each) for each in found], "pairs": pairs}


if __name__ == "__main__":
    main()
