"""A file that a stranger may have made: an ordinary one within its folder is read, and nothing else is waited for."""

import os
import socket
import tracemalloc
from pathlib import Path

import pytest
from gliaflow_preprocessor.preprocessor import Preprocessor
from gliaflow_preprocessor.sources import SourceError, read_source
from gliaflow_proto import Scan, ScanMessage, Source
from gliaflow_runtime import files
from gliaflow_runtime.broker.interface import Delivery
from gliaflow_runtime.broker.memory import MemoryBroker
from gliaflow_runtime.bundle.load import Bundle, load_bundle
from gliaflow_runtime.bundle.manifest import BundleError
from gliaflow_runtime.files import UnsafeFile, read_within
from gliaflow_runtime.stage import InvalidInput, Outcome


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "file").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    return tmp_path / "folder"


def test_a_file_beneath_the_folder_is_read_whole_and_a_link_within_it_followed(folder):
    (folder / "link").symlink_to(Path("sub") / "file")
    assert read_within(folder, folder / "sub" / "file", 6) == b"inside"
    assert read_within(folder, folder / "link", 6) == b"inside"


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**16 + 1, 2**20])
def test_files_of_any_size_up_to_the_limit(folder, size):
    data = os.urandom(size)
    (folder / "file").write_bytes(data)
    assert read_within(folder, folder / "file", size) == data
    with pytest.raises(UnsafeFile, match="over the limit"):
        read_within(folder, folder / "file", size - 1)


def test_what_leads_out_is_refused(folder, tmp_path):
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


ODD = [
    (fifo, "no ordinary file"),
    (unix_socket, "No such device|not supported|no ordinary"),
    (endless, "leads out|not under an allowed root"),
    (loop, "symbolic links|leads out"),
    (Path.mkdir, "directory"),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "reason"), ODD)
def test_a_pipe_a_device_and_a_link_to_itself_are_neither_waited_for_nor_read(tmp_path, make, reason):
    make(tmp_path / "scan.nii")
    make(tmp_path / "manifest.json")
    with pytest.raises(SourceError, match=reason):
        read_source(Source(uri=(tmp_path / "scan.nii").as_uri()), [str(tmp_path)], None)
    with pytest.raises(BundleError, match=rf"manifest\.json: .*({reason})"):
        Bundle(tmp_path)


@pytest.mark.timeout(20)
def test_a_device_beneath_the_folder_is_not_read():
    with pytest.raises(UnsafeFile, match="no ordinary file"):
        read_within(Path("/dev"), Path("/dev/zero"), 2**40)


def test_a_folder_that_is_swapped_for_a_link_after_it_was_looked_at_leads_nowhere(folder, tmp_path, monkeypatch):
    """Between the look and the reading, ``sub`` becomes a link to where another ``file`` lies."""
    (tmp_path / "file").write_bytes(b"outside")
    looked = os.path.realpath

    def swap(path, **options):
        found = looked(path, **options)
        if str(path).endswith("file") and not (folder / "sub").is_symlink():
            (folder / "sub").rename(folder / "moved")
            (folder / "sub").symlink_to(tmp_path)
        return found

    monkeypatch.setattr(files.os.path, "realpath", swap)
    with pytest.raises(OSError, match=r"directory|symbolic"):
        read_within(folder, folder / "sub" / "file", 100)


def test_a_file_that_grows_while_it_is_read_is_read_no_further_than_the_limit(folder, monkeypatch):
    looked = os.fstat

    def grow(descriptor):
        found = looked(descriptor)
        os.truncate(folder / "sub" / "file", 2**20)
        return found

    monkeypatch.setattr(files.os, "fstat", grow)
    tracemalloc.start()
    with pytest.raises(UnsafeFile, match="grew over the limit of 100 bytes"):
        read_within(folder, folder / "sub" / "file", 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**18


def test_a_small_file_takes_little_memory_whatever_the_limit(folder):
    tracemalloc.start()
    read_within(folder, folder / "sub" / "file", 2**40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**18


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "{root}/../secret",
        "file://{root}/../secret",
        "file://{root}/%2e%2e/secret",
        "file://{root}/sub/..%2f..%2fsecret",
        "{root}-sibling/secret",
        "{root}/link",
        "FILE:///etc/passwd",
        "s3://bucket-other/scan",
        "s3://bucket/../other/scan",
        "s3://bucket/%2e%2e/other",
        "memory://x/y",
        "http://169.254.169.254/latest",
        "zip://a.nii::s3://bucket/scan.zip",
        "s3://bucket/a::file:///etc/passwd",
    ],
)
def test_a_uri_that_leads_out_of_the_roots_is_refused(folder, tmp_path, uri):
    (tmp_path / "folder-sibling").mkdir()
    (tmp_path / "folder-sibling" / "secret").write_bytes(b"outside")
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="not under an allowed root"):
        read_source(Source(uri=uri.format(root=folder)), [str(folder), "s3://bucket"], None)


@pytest.mark.parametrize(
    "uri", ["http://[", "file://{root}/a\0b", "{root}/" + "x" * 300, "{root}/" + "x/" * 3000, "{root}/\udcff", ""]
)
def test_a_uri_that_is_none_is_an_error_and_no_fault(folder, uri):
    with pytest.raises(SourceError):
        read_source(Source(uri=uri.format(root=folder)), [str(folder)], None)


def test_a_scan_beneath_a_root_is_read_by_path_or_uri(folder):
    for uri in (str(folder / "sub" / "file"), (folder / "sub" / "file").as_uri(), f"file://{folder}/sub/%66ile"):
        assert read_source(Source(uri=uri), ["/nowhere", str(folder)], None) == b"inside"


def test_a_hard_link_is_the_file_itself(folder, tmp_path):
    """Nothing tells it from the file: whoever may make one in a root may have the file read."""
    os.link(tmp_path / "secret", folder / "hard")
    assert read_within(folder, folder / "hard", 100) == b"outside"


@pytest.mark.parametrize("name", ["gliaflow.extractor", "gliaflow.upload." + "x" * 300])
def test_an_upload_is_an_upload_queue_of_a_name_that_amqp_takes(name):
    with pytest.raises(SourceError, match="no name of an upload queue"):
        read_source(Source(upload=name, chunks=1), [], None)


def test_an_upload_that_is_gone_is_a_failure_but_not_of_a_scan_that_has_been_here_before():
    """Its sender cleared it away with the answer that the earlier delivery led to."""
    stage = Preprocessor(load_bundle(None), MemoryBroker(), [])
    message = ScanMessage(id="m", scan=Scan(id="s"), source=Source(upload="gliaflow.upload.x", chunks=1))
    with pytest.raises(InvalidInput, match="it is gone"):
        stage.handle(message, Delivery("gliaflow.preprocessor", "scan", b""))
    assert stage.handle(message, Delivery("gliaflow.preprocessor", "scan", b"", attempts=1)) == Outcome()
