"""A file is whole or as it was before; a lock has one holder."""

import pytest

from minidiff.files import read_npz, sha256, take_lock, write_text, write_whole


def test_what_fails_halfway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    write_text(path, "σ = 1")
    assert path.read_bytes() == "σ = 1".encode()

    def full(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"a\.txt can't be written: .*No space left"):
        write_whole(path, full)
    assert path.read_text(encoding="utf-8") == "σ = 1" and list(path.parent.iterdir()) == [path]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path, seen = tmp_path / "a", []
    write_text(path, "old")
    write_whole(path, lambda file: (file.write(b"new"), file.flush(), seen.append(path.read_text())))
    assert seen == ["old"] and path.read_text() == "new"


def test_a_lock_has_one_holder_and_is_free_when_its_file_is_closed(tmp_path):
    pytest.importorskip("fcntl")
    with (tmp_path / ".lock").open("a") as first, (tmp_path / ".lock").open("a") as second:
        assert take_lock(first) and not take_lock(second)
        first.close()
        assert take_lock(second)


def test_a_file_that_is_no_npz_is_refused_and_a_hash_is_that_of_the_bytes(tmp_path):
    write_text(tmp_path / "a.npz", "abc")
    with pytest.raises(ValueError, match=r"a\.npz can't be read as an \.npz file"):
        read_npz(tmp_path / "a.npz")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert sha256(tmp_path / "a.npz") == known
