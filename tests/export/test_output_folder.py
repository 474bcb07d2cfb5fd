"""An output that must stay the folder it is: a mounted volume, or one whose parent cannot be written to.

The mounts are real, each in a namespace of its own, and need the right to mount; `.ci/run` as root has it.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.bundle import output_folder
from export.bundle.output_folder import mount_points
from export.bundle.placing import swap
from export.bundle.staging import prepare, staged
from export.errors import ExportError

OLD = {"manifest.json": "old", "config.json": "old", "onnx/old.onnx_data": "old"}
NEW = {"manifest.json": "new", "config.json": "new", "onnx/decode.onnx": "new"}
STAGE = """
import json, os, sys
from pathlib import Path
from export.bundle.staging import staged
output = Path(sys.argv[1])
inode = output.stat().st_ino
with staged(output, force=True) as work:
    for name, content in json.loads(sys.argv[2]).items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(content)
    if sys.argv[3]:
        raise SystemExit(sys.argv[3])
assert output.stat().st_ino == inode
print(json.dumps({str(path.relative_to(output)): path.read_text() for path in output.rglob("*") if path.is_file()}))
"""


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def mounted(mount, target, command):
    """Run a command where `mount` has mounted something on `target`."""
    script = 'mount_options=$1 target=$2; shift 2; mount $mount_options "$target" && exec "$@"'
    unshare = ["unshare", "--mount", "sh", "-c", script, "sh", mount, str(target), *map(str, command)]
    return subprocess.run(unshare, capture_output=True, text=True, timeout=300, check=False)


def can_mount():
    if not shutil.which("unshare"):
        return False
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="no right to mount here, so no volume to export to")


def stage(output, files=NEW, fails=""):
    return [sys.executable, "-c", STAGE, output, json.dumps(files), fails]


@pytest.fixture(params=["volume", "a volume's name"])
def volume(tmp_path, request):
    """A folder to mount, and where."""
    (tmp_path / "source").mkdir()
    (tmp_path / request.param).mkdir()
    return tmp_path / "source", tmp_path / request.param


@needs_mounts
@pytest.mark.parametrize("before", [{}, OLD], ids=["empty", "a bundle"])
def test_a_folder_mounted_from_the_same_file_system(volume, before):
    """As `docker run --volume` does; the folder's device is its parent's, so that only the kernel's list tells."""
    source, target = volume
    fill(source, before)
    done = mounted(f"--bind {source}", target, stage(target))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == content(source) == NEW
    assert list(target.iterdir()) == []  # outside the namespace nothing is mounted there


@needs_mounts
@pytest.mark.parametrize("before", [{}, OLD], ids=["empty", "a bundle"])
def test_an_export_to_a_volume_that_fails_leaves_what_was_there(volume, before):
    source, target = volume
    fill(source, before)
    done = mounted(f"--bind {source}", target, stage(target, fails="no parity"))
    assert (done.returncode, done.stderr) == (1, "no parity\n")
    assert content(source) == before
    assert sorted(path.name for path in source.iterdir()) == sorted({name.split("/")[0] for name in before})


@needs_mounts
def test_another_file_system(tmp_path):
    done = mounted("-t tmpfs none", tmp_path, stage(tmp_path))
    assert (done.returncode, json.loads(done.stdout or "{}")) == (0, NEW), done.stderr


@needs_mounts
def test_a_read_only_volume_is_refused_before_the_work(volume):
    source, target = volume
    done = mounted(f"--bind -o ro {source}", target, [sys.executable, "-m", "export", ".", "--output", target])
    expected = (
        f"gpt2-onnx-export: {target} cannot be written to by this user; choose another output, or make it writable"
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{expected}\n")


@needs_mounts
def test_a_bundle_is_exported_to_a_volume(tmp_path, seeded_checkpoint):
    """The command itself; then the same again without --force, and what the volume holds is a bundle."""
    from runtime.bundle.bundle import open_bundle

    checkpoint, source, target = seeded_checkpoint(tmp_path / "tiny"), tmp_path / "source", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    (source / "lost+found").mkdir()  # as on a new ext4
    command = [sys.executable, "-m", "export", checkpoint, "--output", target]
    done = mounted(f"--bind {source}", target, command)
    assert done.returncode == 0, done.stderr
    assert not [path for path in source.iterdir() if path.name.startswith(".")]
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert files == {"manifest.json", *open_bundle(source).manifest.files}
    again = mounted(f"--bind {source}", target, command)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert f"{target} exists; choose another output, or force its replacement" in again.stderr


def test_mount_points_are_read_as_the_kernel_writes_them(tmp_path, monkeypatch):
    """proc(5): fields apart by spaces, the fifth is the mount point, and a space in it is \\040."""
    table = tmp_path / "mountinfo"
    table.write_bytes(rb"36 35 98:0 /mnt1 /a\040b\134c rw,noatime master:1 - ext3 /dev/root rw" + b"\n")
    monkeypatch.setattr(output_folder, "MOUNTS", table)
    assert mount_points() == {b"/a b\\c"}


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EPERM], ids=["mounted", "of an image", "sticky"])
@pytest.mark.parametrize("before", [{}, OLD], ids=["empty", "a bundle"])
def test_a_folder_that_turns_out_not_to_be_renamable(tmp_path, monkeypatch, number, before):
    """A folder of an image's lower layer gives EXDEV, which nothing tells beforehand."""
    output, rename = tmp_path / "gpt2", os.rename
    output.mkdir()
    fill(output, before)

    def refuse(source, target):
        if Path(source) == output:
            raise OSError(number, os.strerror(number), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        output.rename(tmp_path / "elsewhere")
    with staged(output, force=True) as work:
        fill(work, NEW)
    assert content(tmp_path) == {f"gpt2/{name}": text for name, text in NEW.items()}


def test_a_disk_error_in_the_midst_of_the_moves_brings_the_old_bundle_back(tmp_path, monkeypatch):
    output, rename, count = tmp_path / "gpt2", os.rename, iter(range(100))
    fill(output, OLD)

    def fail_once(source, target):
        if next(count) == 5:
            raise OSError(errno.EIO, "Input/output error", str(source))
        rename(source, target)

    monkeypatch.setattr(output_folder, "is_mounted", lambda folder: folder == output)
    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="Input/output"), staged(output, force=True) as work:
        fill(work, NEW)
    assert content(tmp_path) == {f"gpt2/{name}": text for name, text in OLD.items()}


def test_the_current_folder_stays_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with staged(Path(), force=False) as work:
        fill(work, NEW)
    assert content(Path()) == NEW


def test_other_errors_of_a_rename_are_not_hidden(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "gpt2").mkdir()
    for name in ("exchange", "os.rename"):
        monkeypatch.setattr(f"export.bundle.placing.{name}", fail)
        with pytest.raises(OSError, match="No space left"):
            swap(tmp_path / "stage", tmp_path / "gpt2", force=True)
        monkeypatch.setattr("export.bundle.placing.exchange", lambda *_: False)


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file is not a folder; choose another output"):
        prepare(tmp_path / "file" / "gpt2", force=True)


@pytest.mark.skipif(os.access("/", os.W_OK), reason="root may write anywhere")
@pytest.mark.parametrize("before", [None, {}, OLD], ids=["nothing", "empty", "a bundle"])
def test_what_this_user_may_not_write_is_refused(tmp_path, before):
    output = tmp_path / "there" / "gpt2"
    output.parent.mkdir()
    if before is not None:
        output.mkdir()
        fill(output, before)
        output.chmod(0o500)
    output.parent.chmod(0o500)
    with pytest.raises(ExportError, match="cannot be written to by this user; choose another output"):
        prepare(output, force=True)
    output.parent.chmod(0o700)


@pytest.mark.skipif(os.access("/", os.W_OK), reason="root may write anywhere")
@pytest.mark.parametrize("before", [{}, OLD], ids=["empty", "a bundle"])
def test_an_own_folder_in_one_that_cannot_be_written_to(tmp_path, before):
    output = tmp_path / "there" / "gpt2"
    output.mkdir(parents=True)
    fill(output, before)
    output.parent.chmod(0o500)
    with staged(output, force=True) as work:
        fill(work, NEW)
    assert content(output) == NEW
    output.parent.chmod(0o700)
