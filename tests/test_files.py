"""Files: a write is whole or nothing; tensors are written and digested as the library has them."""

import errno
import hashlib
import json
import os
import stat
import sys
import tracemalloc
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import ellzero as ez
from ellzero.files import (
    DTYPES,
    digest,
    read_tensors,
    tensors_to_bytes,
    write_atomically,
    write_json,
    write_parts,
    write_tensors,
)


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (b"one", b"", b"three"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    step, error, tmp_path, monkeypatch
):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_told_by_the_name_of_the_file(step, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(ez.WriteError) as caught:
        write_atomically(tmp_path / "file", b"new")
    assert str(caught.value) == f"cannot write {tmp_path}/file: No space left on device"
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC


def test_the_folder_is_synced_after_the_rename(tmp_path, monkeypatch):
    steps: list[str] = []
    replace, fsync = os.replace, os.fsync

    def replacing(*paths):
        replace(*paths)
        steps.append("replace")

    def syncing(descriptor):
        fsync(descriptor)
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            assert os.path.samestat(about, tmp_path.stat())
        steps.append("sync folder" if stat.S_ISDIR(about.st_mode) else "sync file")

    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(os, "fsync", syncing)
    write_atomically(tmp_path / "file", b"new")
    assert steps == ["sync file", "replace", "sync folder"]


@pytest.mark.parametrize(
    ("number", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_a_file_system_that_syncs_no_folders_is_no_error(number, passes, tmp_path, monkeypatch):
    fsync = os.fsync

    def refusing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    with nullcontext() if passes else pytest.raises(ez.WriteError, match="Input/output error"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


# an interrupt just before `with` leaves the closing of the file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_instruction_leaves_nothing_half_written(tmp_path):
    """Ctrl-C comes between any two instructions, so it is tried at each of them in turn."""
    path = tmp_path / "file"
    instruction = 0
    while True:
        path.write_bytes(b"old")
        countdown = instruction

        def trace(frame, event, argument):
            nonlocal countdown
            if frame.f_code is not write_parts.__code__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                countdown -= 1
                if countdown == -1:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            write_atomically(path, b"new")
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert list(tmp_path.iterdir()) == [path]
        if countdown >= 0:
            break  # the function was done before its turn came
        assert path.read_bytes() in (b"old", b"new")
        instruction += 1
    assert path.read_bytes() == b"new"
    assert instruction > 50


def test_the_users_umask_is_kept(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_json_without_nan(tmp_path):
    write_json(tmp_path / "file", {"a": [1, None]})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"a": float("nan")})
    assert (tmp_path / "file").read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'


def of_every_dtype() -> dict[str, Tensor]:
    """Tensors whose bytes are all different, of each dtype; the names in no order."""
    bytes_ = torch.arange(48, dtype=torch.uint8)
    tensors = {f"{d}"[::-1]: bytes_.view(d) for d in DTYPES if d is not torch.bool}
    return tensors | {
        "bool": torch.tensor([True, False, True]),
        "no values": torch.zeros(2, 0, 3),
        "b/scalar": torch.tensor(1.5),
        'a\x01é/"\\\n': torch.arange(6.0).reshape(2, 3),
    }


def library(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The file as safetensors writes it; it wants tensors that share no memory."""
    own_memory = {name: tensor.clone() for name, tensor in tensors.items()}
    return save(own_memory, {"ellzero": json.dumps(metadata)})


@pytest.mark.parametrize("metadata", [{}, {"epoch": 3, "é": [0.1, None, '"\ud7ff']}])
def test_tensors_are_written_as_the_library_writes_them(metadata, tmp_path):
    tensors = of_every_dtype()
    write_tensors(tmp_path / "file", tensors, metadata)
    assert (tmp_path / "file").read_bytes() == library(tensors, metadata)
    assert tensors_to_bytes(tensors, metadata) == library(tensors, metadata)
    assert tensors_to_bytes({}, metadata) == library({}, metadata)


def test_tensors_that_are_not_contiguous_or_share_memory(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    write_tensors(tmp_path / "file", {"a": weight, "b": weight, "c": weight.T}, {})
    tensors, _ = read_tensors(tmp_path / "file")
    assert torch.equal(tensors["b"], weight)
    assert torch.equal(tensors["c"], weight.T)


@pytest.mark.parametrize(
    ("tensor", "form"),
    [
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.zeros(2, 2).to_sparse(), "sparse_coo"),
    ],
)
def test_a_tensor_that_safetensors_cannot_hold_is_named(tensor, form, tmp_path):
    with pytest.raises(ez.InputError, match=rf"^fc\.weight is {form}, which safetensors cannot"):
        write_tensors(tmp_path / "file", {"fc.weight": tensor}, {})
    assert not list(tmp_path.iterdir())


def test_a_large_tensor_is_written_from_its_own_memory(tmp_path):
    tensors = {"large": torch.zeros(5_000_000), "small": torch.zeros(3)}  # 20 MB
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "file", tensors, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "file").stat().st_size > 20_000_000
    assert peak < 1_000_000


def test_the_digest_is_that_of_the_file_with_sorted_keys():
    tensors, document = of_every_dtype(), {"b": (1, 2.5), "a": {2: None, 10: "é"}}
    as_json = {"a": {"10": "é", "2": None}, "b": [1, 2.5]}
    expected = hashlib.sha256(library(tensors, as_json)).hexdigest()
    assert digest(tensors, document) == expected
    in_other_order = dict(reversed(tensors.items()))
    assert digest(in_other_order, json.loads(json.dumps(document))) == expected


def test_the_digest_differs_with_every_bit_name_shape_dtype_and_entry():
    weight = torch.arange(2, dtype=torch.int16)
    others = [
        {"w": weight.clone() ^ (1 << bit) * torch.tensor([0, 1]).short()} for bit in range(15)
    ]
    others += [{"v": weight}, {"w": weight[None]}, {"w": weight.view(torch.float16)}, {}]
    documents = [({"w": weight}, {"seed": seed}) for seed in (0, 1, "0")]
    cases = [*documents, *((tensors, {"seed": 0}) for tensors in others)]
    assert len({digest(*case) for case in cases}) == len(cases)
