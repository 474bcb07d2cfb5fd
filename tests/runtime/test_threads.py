"""How many CPUs a process may use, in folders that look like /sys/fs/cgroup."""

import os

import pytest

from runtime.ort.threads import available_cpus


@pytest.fixture
def cpus(monkeypatch):
    """Pretend that the machine has so many CPUs, and that this process may be scheduled on so many."""

    def pretend(machine, affinity):
        monkeypatch.setattr(os, "cpu_count", lambda: machine)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)

    pretend(16, 16)
    return pretend


@pytest.fixture
def v2(tmp_path):
    def write(content):
        (tmp_path / "cpu.max").write_text(content)
        return tmp_path

    return write


@pytest.fixture
def v1(tmp_path):
    def write(quota, period):
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(period)
        return tmp_path

    return write


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", 16),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("400000 100000\n", 4),
        ("400001 100000\n", 5),
        ("100000 50000\n", 2),
    ],
)
def test_a_v2_quota_is_rounded_up_to_whole_cpus(v2, content, expected):
    assert available_cpus(v2(content)) == expected


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("150000\n", "100000\n", 2), ("50000\n", "100000\n", 1), ("300000\n", "100000\n", 3), ("-1\n", "100000\n", 16)],
)
def test_a_v1_quota_is_rounded_up_and_minus_one_is_none(v1, quota, period, expected):
    assert available_cpus(v1(quota, period)) == expected


@pytest.mark.usefixtures("cpus")
def test_v2_is_asked_before_v1(v1, v2):
    v1("700000", "100000")
    assert available_cpus(v2("300000 100000\n")) == 3


@pytest.mark.usefixtures("cpus")
def test_a_machine_without_cgroups_is_used_whole(tmp_path):
    assert available_cpus(tmp_path / "nothing") == 16


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize("content", ["", "max\n", "many 100000\n"])
def test_a_quota_that_makes_no_sense_is_no_quota(v2, content):
    assert available_cpus(v2(content)) == 16


@pytest.mark.parametrize(("content", "expected"), [("max 100000", 3), ("800000 100000", 3), ("200000 100000", 2)])
def test_affinity_is_a_bound_too(cpus, v2, content, expected):
    cpus(16, 3)
    assert available_cpus(v2(content)) == expected


def test_the_machine_counts_where_affinity_is_unknown(cpus, v2, monkeypatch):
    cpus(6, 1)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cpus(v2("max 100000")) == 6


def test_there_is_at_least_one_cpu_where_nothing_is_known(cpus, tmp_path, monkeypatch):
    cpus(None, 1)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cpus(tmp_path / "nothing") == 1


@pytest.mark.usefixtures("cpus")
def test_every_group_on_the_way_to_this_processs_own_is_a_bound(tmp_path):
    """As systemd sets a service's CPUQuota: not at the root."""
    service = tmp_path / "system.slice" / "gpt2.service"
    service.mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text("1:cpu:/elsewhere\n0::/system.slice/gpt2.service\n")
    (service / "cpu.max").write_text("300000 100000")
    assert available_cpus(tmp_path, membership) == 3
    (tmp_path / "system.slice" / "cpu.max").write_text("200000 100000")
    assert available_cpus(tmp_path, membership) == 2
    (tmp_path / "system.slice" / "cpu.max").write_text("max 100000")
    assert available_cpus(tmp_path, membership) == 3
