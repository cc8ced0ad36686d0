"""Spoken digits: small recordings in the true format, and the real ones where they are."""

import io
import os
import struct
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ellzero.data.spoken_digits import SPOKEN_DIGITS, log_mel, spoken_digits
from ellzero.errors import InputError
from ellzero.factories import build_data
from ellzero.recipe import Factory

SPEAKERS = ("ann", "bob")
ROOT = "free-spoken-digit-dataset/recordings"


def wav(samples, rate: int = 8000, width: int = 2, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setframerate(rate)
        writer.setsampwidth(width)
        writer.setnchannels(channels)
        writer.writeframes(np.asarray(samples, "<i2").tobytes())
    return file.getvalue()


def recordings(**changed: bytes | None) -> dict[str, bytes]:
    """Of two speakers; digit d, take t by the second is of the samples d + 1, 1000 + t, -2000."""
    files = {
        f"{digit}_{speaker}_{take}": wav([digit + 1, 1000 * number + take, -2000])
        for digit in range(10)
        for number, speaker in enumerate(SPEAKERS)
        for take in range(50)
    }
    files |= {name: content for name, content in changed.items() if content is not None}
    for name, content in changed.items():
        if content is None:
            del files[name]
    return {f"{ROOT}/{name}.wav": content for name, content in files.items()}


def archived(root: Path, files: dict[str, bytes]) -> Path:
    """A data root with the files in the archive of the release."""
    path = root / "spoken-digits" / "free-spoken-digit-dataset.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"free-spoken-digit-dataset/README.md": b"text", **files}.items():
            archive.writestr(name, content)
    return root


def whole(part) -> tuple[torch.Tensor, torch.Tensor]:
    ((inputs, labels),) = part.batches(10_000, torch.device("cpu"))
    return inputs, labels


def raw(data, part) -> torch.Tensor:
    """A part's inputs before standardization."""
    return (whole(part)[0] - data.preprocess.shift) / data.preprocess.scale


def peaks(data, part) -> list[tuple[int, ...]]:
    """The recordings of a part, times the largest magnitude, in its order."""
    middle = raw(data, part)[:, 0, 3998:4001] * 2000
    return [tuple(row) for row in middle.round().int().tolist()]


def test_a_recording_is_centred_and_divided_by_its_peak(tmp_path):
    long = np.zeros(8003)  # three too many: one goes at the start, two at the end
    long[[0, 1, 2, 8000, 8001, 8002]] = (9000, 500, 250, 1000, 9000, 9000)
    files = recordings(
        **{"0_ann_0": wav([100, -50]), "0_ann_1": wav(long), "0_ann_2": wav([0, 0, 0])}
    )
    data = spoken_digits(data_root=archived(tmp_path, files))
    short, cut, silent = raw(data, data.test)[:3, 0]
    expected = torch.zeros(3, 8000)
    expected[0, 3999:4001] = torch.tensor([1, -0.5])
    expected[1, [0, 1, 7999]] = torch.tensor([0.5, 0.25, 1])
    torch.testing.assert_close(torch.stack([short, cut, silent]), expected, atol=1e-5, rtol=0)


def test_the_parts_are_the_publishers(tmp_path):
    data = spoken_digits(data_root=archived(tmp_path, recordings()))
    takes = {"train": range(10, 50), "validation": range(5, 10), "test": range(5)}
    for part in data.parts:
        expected = [
            (digit + 1, 1000 * number + take, -2000)
            for digit in range(10)
            for number in range(2)
            for take in takes[part.name]
        ]
        assert peaks(data, part) == expected
        assert whole(part)[1].tolist() == [digit - 1 for digit, *_ in expected]
    assert data.classes == tuple("0123456789")


def test_a_speaker_is_held_out_whole(tmp_path):
    data = spoken_digits(data_root=archived(tmp_path, recordings()), held_out="bob")
    speakers_and_takes = {
        part.name: {divmod(take, 1000) for _, take, _ in peaks(data, part)} for part in data.parts
    }
    assert speakers_and_takes == {
        "train": {(0, take) for take in (*range(5), *range(10, 50))},
        "validation": {(0, take) for take in range(5, 10)},
        "test": {(1, take) for take in range(50)},
    }


def test_standardization_knows_the_training_part_alone(tmp_path):
    files = recordings()
    first = spoken_digits(data_root=archived(tmp_path / "1", files))
    inputs, _ = whole(first.train)
    assert abs(float(inputs.mean())) < 1e-5
    assert float(inputs.std(correction=0)) == pytest.approx(1, abs=1e-5)
    loud = wav([20000] * 4000)
    others = {f"{digit}_ann_{take}": loud for digit in range(10) for take in range(10)}
    second = spoken_digits(data_root=archived(tmp_path / "2", recordings(**others)))
    assert second.preprocess == first.preprocess
    assert not whole(second.test)[0].equal(whole(first.test)[0])


def test_a_folder_is_read_as_its_archive(tmp_path):
    files = recordings()
    first = spoken_digits(data_root=archived(tmp_path / "zip", files))
    for root, below in (("whole", ""), ("inner", "free-spoken-digit-dataset/")):
        for name, content in files.items():
            path = tmp_path / root / "spoken-digits" / name.removeprefix(below)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        second = spoken_digits(data_root=tmp_path / root)
        assert second.preprocess == first.preprocess
        assert [
            whole(part)[0].equal(whole(other)[0])
            for part, other in zip(first.parts, second.parts, strict=True)
        ] == [True] * 3


def test_frames_have_their_power_where_the_tone_is():
    time = torch.arange(8000) / 8000
    mel_peaks = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 42) / 2595) - 1)[1:-1]
    for band in (5, 20, 39):
        frames = log_mel(torch.sin(2 * torch.pi * mel_peaks[band] * time).unsqueeze(0))[0]
        assert (frames.argmax(1) == band).all()


def test_a_frame_by_the_definition():
    """One frame in plain NumPy: window, transform, triangles, logarithm."""
    generator = np.random.default_rng(0)
    sound = generator.uniform(-1, 1, 400)
    frame = sound[80 + 28 : 80 + 228] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200))
    power = np.abs(np.fft.rfft(frame, 256)) ** 2
    hertz = np.arange(129) * 8000 / 256
    edges = 700 * (10 ** (np.arange(42) * 2595 * np.log10(1 + 4000 / 700) / 41 / 2595) - 1)
    expected = [
        np.log(1 + 1000 * power @ np.interp(hertz, edges[b : b + 3], [0, 1, 0])) for b in range(40)
    ]
    frames = log_mel(torch.from_numpy(sound).float().unsqueeze(0))
    assert frames.shape == (1, 2, 40)
    np.testing.assert_allclose(frames[0, 1], expected, rtol=1e-4)


def test_silence_is_zero_and_twice_as_loud_is_a_sum():
    sound = torch.rand(1, 8000) - 0.5
    quiet, loud = log_mel(sound), log_mel(2 * sound)
    assert (log_mel(torch.zeros(1, 8000)) == 0).all()
    torch.testing.assert_close((loud.exp() - 1) / (quiet.exp() - 1), torch.full_like(quiet, 4))


def test_frames_are_data_as_well(tmp_path):
    data = spoken_digits(
        data_root=archived(tmp_path, recordings()),
        features="log-mel",
        augment={"shift": 3},
    )
    inputs, _ = whole(data.validation)
    assert inputs.shape == (100, 97, 40)
    train, _ = whole(data.train)
    assert float(train.std(correction=0)) == pytest.approx(1, abs=1e-5)
    torch.manual_seed(0)
    ((changed, _),) = data.train.batches(800, torch.device("cpu"), shuffle=True)
    # recordings of three samples: all frames but those around the middle are silent
    assert data.preprocess is not None
    silence = float(data.preprocess(torch.zeros(1, 1, 1))) + 1e-3
    (unmoved, moved) = (
        {int(frame) for frame in (x.amax((0, 2)) > silence).nonzero()} for x in (train, changed)
    )
    assert moved == {frame + shift for frame in unmoved for shift in range(-3, 4)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"3_bob_7": None}, r"has no recording recordings/3_bob_7\.wav; expected 50 of each"),
        ({"3_bob_7": b"RIFF"}, r"3_bob_7\.wav is no \.wav file"),
        ({"3_bob_7": b""}, r"3_bob_7\.wav is no \.wav file"),
        ({"3_bob_7": wav([1, 2], rate=16000)}, "has 16000 samples a second, 16 bits and 1 chan"),
        ({"3_bob_7": wav([1, 2], channels=2)}, "2 channels; expected 8000, 16 and 1"),
        ({"3_bob_7": wav([1, 2], width=1)}, "8 bits"),
        ({"3_bob_7": wav([])}, "holds 0 samples"),
        ({"3_bob_7": wav(range(9))[:-4]}, "holds 7 samples; its header says 9"),
    ],
)
def test_damaged_recordings_are_named(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        spoken_digits(data_root=archived(tmp_path, recordings(**changed)))


def test_a_header_that_claims_gigabytes_takes_none(tmp_path):
    content = bytearray(wav([1, 2, 3]))
    content[40:44] = struct.pack("<I", 2**32 - 2)
    with pytest.raises(InputError, match="holds 3 samples; its header says 2147483647"):
        spoken_digits(data_root=archived(tmp_path, recordings(**{"3_bob_7": bytes(content)})))


def test_options_are_checked(tmp_path):
    archived(tmp_path, recordings())
    for options, message in (
        ({"features": "mfcc"}, "features is 'mfcc'; expected 'raw' or 'log-mel'"),
        ({"held_out": "bobby"}, "there is no speaker 'bobby'; did you mean bob"),
        ({"augment": {"flip": True}}, "augment has no 'flip' for this data"),
        ({"features": "log-mel", "augment": {"gain": 0.1}}, "augment has no 'gain'"),
    ):
        table = {"name": "spoken-digits", "data_root": str(tmp_path), **options}
        with pytest.raises(InputError, match=message):
            build_data(Factory.model_validate(table))


@pytest.fixture
def real() -> Path:
    root = Path(os.environ.get("ELLZERO_DATA", ""))
    if not (root / SPOKEN_DIGITS.name / "free-spoken-digit-dataset.zip").is_file():
        pytest.skip("no spoken-digits in ELLZERO_DATA")
    return root


@pytest.mark.slow
def test_the_real_recordings(real):
    data = spoken_digits(data_root=real)
    assert [part.examples for part in data.parts] == [2400, 300, 300]
    for part in data.parts:
        inputs, labels = whole(part)
        assert inputs.shape[1:] == (1, 8000)
        assert (labels.bincount() * 10 == len(labels)).all()
        # each is as loud as can be, but for what a centred second cuts away
        assert raw(data, part).abs().amax(2) == pytest.approx(1, abs=1e-4)
    held = spoken_digits(data_root=real, held_out="theo")
    assert [part.examples for part in held.parts] == [2250, 250, 500]
    again = spoken_digits(data_root=real, held_out="theo")
    for part, other in zip(held.parts, again.parts, strict=True):
        assert whole(part)[0].equal(whole(other)[0])
