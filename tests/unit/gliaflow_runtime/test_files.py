"""Untrusted files: a regular file inside its folder is read; nothing else is read or blocks. And whole writes."""

import errno
import os
import resource
import socket
import stat
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gliaflow_runtime import files
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.files import UnsafeFile, allow_open_files, private_folder, read_within, whole_file, write_whole


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "file").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    return tmp_path / "folder"


def test_files_and_links_inside_the_folder_are_read(folder):
    (folder / "link").symlink_to(Path("sub") / "file")
    assert read_within(folder, folder / "sub" / "file", 6) == b"inside"
    assert read_within(folder, folder / "link", 6) == b"inside"


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**16 + 1, 2**20])
def test_files_up_to_the_limit_are_read(folder, size):
    data = os.urandom(size)
    (folder / "file").write_bytes(data)
    assert read_within(folder, folder / "file", size) == data
    with pytest.raises(UnsafeFile, match="over the limit"):
        read_within(folder, folder / "file", size - 1)


def test_paths_out_of_the_folder_are_refused(folder, tmp_path):
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    for path in (folder / "link", folder / "up" / "secret", folder / ".." / "secret", Path("/etc/passwd")):
        with pytest.raises(UnsafeFile, match="leads out"):
            read_within(folder, path, 100)


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def endless(path):
    path.symlink_to("/dev/zero")


def loop(path):
    path.symlink_to(path)


SPECIAL = [
    (fifo, "not a regular file"),
    (unix_socket, "No such device|not supported|not a regular"),
    (endless, "leads out"),
    (loop, "symbolic links|leads out"),
    (Path.mkdir, "directory"),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "reason"), SPECIAL)
def test_special_files_are_refused_and_do_not_block(tmp_path, make, reason):
    make(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match=rf"manifest\.json: .*({reason})"):
        Bundle(tmp_path)


@pytest.mark.timeout(20)
def test_a_device_inside_the_folder_is_refused():
    with pytest.raises(UnsafeFile, match="not a regular file"):
        read_within(Path("/dev"), Path("/dev/zero"), 2**40)


def test_a_folder_replaced_by_a_link_after_the_check_is_refused(folder, tmp_path, monkeypatch):
    """Between check and reading, ``sub`` becomes a link to a folder with another ``file``."""
    (tmp_path / "file").write_bytes(b"outside")
    realpath = os.path.realpath

    def swap(path, **options):
        real = realpath(path, **options)
        if str(path).endswith("file") and not (folder / "sub").is_symlink():
            (folder / "sub").rename(folder / "moved")
            (folder / "sub").symlink_to(tmp_path)
        return real

    monkeypatch.setattr(files.os.path, "realpath", swap)
    with pytest.raises(OSError, match=r"directory|symbolic"):
        read_within(folder, folder / "sub" / "file", 100)


def test_a_file_that_grows_while_it_is_read_is_refused_at_the_limit(folder, monkeypatch):
    fstat = os.fstat

    def grow(descriptor):
        status = fstat(descriptor)
        os.truncate(folder / "sub" / "file", 2**20)
        return status

    monkeypatch.setattr(files.os, "fstat", grow)
    tracemalloc.start()
    with pytest.raises(UnsafeFile, match="grew over the limit of 100 bytes"):
        read_within(folder, folder / "sub" / "file", 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**18


def test_a_small_file_takes_little_memory_with_a_high_limit(folder):
    tracemalloc.start()
    read_within(folder, folder / "sub" / "file", 2**40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**18


def test_a_hard_link_is_read_like_the_file_itself(folder, tmp_path):
    """They cannot be distinguished: someone who can create a hard link under a root can have that file read."""
    os.link(tmp_path / "secret", folder / "hard")
    assert read_within(folder, folder / "hard", 100) == b"outside"


def test_a_file_is_written_whole_and_replaces_the_one_before(tmp_path):
    path = tmp_path / "answer.json"
    write_whole(path, "é\n", sync=True)
    assert path.read_bytes() == "é\n".encode()
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert [file.name for file in tmp_path.iterdir()] == ["answer.json"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_new_file_replaces_none_also_on_a_volume_without_hard_links(tmp_path, monkeypatch, has_links):
    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(files.os, "link", link)
    write_whole(tmp_path / "features", b"first", sync=True, new=True)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "features", b"second", new=True)
    assert (tmp_path / "features").read_bytes() == b"first"
    assert not list(tmp_path.glob("*.part"))


def test_one_of_several_writers_makes_a_new_file_on_a_volume_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def write(number):
        try:
            write_whole(tmp_path / "features", str(number), new=True)
        except FileExistsError:
            return False
        return True

    monkeypatch.setattr(files.os, "link", link)
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, range(32)))
    assert written.count(True) == 1
    assert (tmp_path / "features").read_text() == str(written.index(True))


def test_an_error_while_writing_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"old")

    def fail_halfway():
        with whole_file(path, ending=".part.nii.gz") as part:
            assert part.parent == tmp_path
            assert part.name.endswith(".part.nii.gz")
            part.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_halfway()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("mask.nii.gz", b"old")]


def test_sync_flushes_the_file_and_its_folder_to_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files.os, "fsync", lambda at: synced.append(Path(f"/proc/self/fd/{at}").resolve()))
    write_whole(tmp_path / "features", b"1", sync=True)
    assert [path.parent for path in synced] == [tmp_path, tmp_path.parent]
    assert synced[1] == tmp_path
    synced.clear()
    write_whole(tmp_path / "table", b"1")
    assert not synced


def test_a_writer_removes_what_one_killed_an_hour_ago_left_and_nothing_of_another_that_still_writes(tmp_path):
    for name in (".unet.checkpoint.0123abcd.part", ".other.0123abcd.part"):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (0, 0))
    with whole_file(tmp_path / "unet.checkpoint") as other:
        other.write_bytes(b"of another writer")
        with whole_file(tmp_path / "unet.checkpoint", sweep=True) as part:
            part.write_bytes(b"whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.0123abcd.part", "unet.checkpoint"]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_state_folder_and_what_is_in_it_are_for_this_user_alone(tmp_path):
    state = tmp_path / "user" / "state"
    private_folder(state / "dead-letters")
    assert [mode(path) for path in (state.parent, state, state / "dead-letters")] == [0o700] * 3


def test_an_open_folder_of_an_older_version_is_closed(tmp_path):
    (tmp_path / "dead-letters").mkdir()
    (tmp_path / "dead-letters").chmod(0o777)
    private_folder(tmp_path / "dead-letters")
    assert mode(tmp_path / "dead-letters") == 0o700


@pytest.mark.parametrize("shared", [0o1777, 0o775, 0o755])
def test_a_state_folder_that_exists_keeps_its_mode(tmp_path, shared):
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(shared)
    private_folder(state / "dead-letters")
    assert [mode(path) for path in (state, state / "dead-letters")] == [shared, 0o700]


def test_a_folder_or_link_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "dead-letters").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "dead-letters")
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    for name in ("dead-letters", "link"):
        with pytest.raises(PermissionError, match="belongs to another user"):
            private_folder(tmp_path / name)


def test_as_many_files_can_be_open_as_the_system_allows():
    """A memory map keeps its file open, and a cohort of 600 scans has more than the usual 1,024."""
    soft, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))
        allow_open_files()
        raised, same = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert same == hard
        assert raised == (files.OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, files.OPEN_FILES))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, same)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
