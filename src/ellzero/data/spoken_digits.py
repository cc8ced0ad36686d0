"""Spoken digits: 3,000 recordings of six speakers, as raw audio or as log-mel frames."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ellzero.data.archive import GIB, MIB, read_files
from ellzero.data.augment import Augment
from ellzero.data.data import Data
from ellzero.data.folders import Published, find_files
from ellzero.data.mnist import DIGITS
from ellzero.errors import InputError, nearest
from ellzero.preprocess import Preprocess

_ARCHIVE = "free-spoken-digit-dataset.zip"

SPOKEN_DIGITS = Published(
    name="spoken-digits",
    url=None,  # GitHub makes archives anew, so that their checksums do not last
    sha256={_ARCHIVE: "fe9bce14626df356c37f3c973fa9cf3f9744e4b3ac69c454b94c77211127792e"},
    unpacked=("recordings", "free-spoken-digit-dataset"),
    source="https://github.com/Jakobovski/free-spoken-digit-dataset (commit 26eb9aa)",
)
"""The Free Spoken Digit Dataset, as a .zip or unpacked."""

RATE = 8000
"""Samples per second."""

SAMPLES = 8000
"""Samples of an example: one second."""

_FRAME, _HOP, _FFT, _BANDS = 200, 80, 256, 40  # 25 ms every 10 ms
_TAKES = 50  # recordings of each digit by each speaker
_TEST, _VALIDATION = range(5), range(5, 10)  # the publisher's test split; ours of the rest
_NAME = re.compile(r"(?:.*/)?recordings/(\d)_([^/_]+)_(\d+)\.wav")


class _Recording(NamedTuple):
    digit: int
    speaker: str
    take: int


def spoken_digits(
    *,
    data_root: Path | str | None = None,
    features: Literal["raw", "log-mel"] = "raw",
    held_out: str | None = None,
    augment: Mapping[str, Any] | Augment | None = None,
) -> Data:
    """Spoken digits: English digits 0 to 9, 50 recordings of each by each of six speakers.

    A recording is centred in a second (8,000 samples; zeros around a shorter one, the middle of a
    longer one) and divided by its largest magnitude. The parts are the publisher's: takes 0 to 4 of
    each digit and speaker for testing (300), and of the others 5 to 9 for validation (300) and 10
    to 49 for training (2,400). Or one speaker is held out: all takes of this speaker for testing
    (500), of the other speakers' takes 5 to 9 for validation (250), the rest for training (2,250).

    Args:
        data_root: the folder that holds `spoken-digits/`; see `ellzero.data.folders.find_files`.
        features: `raw`: float32 (N, 1, 8000). `log-mel`: float32 (N, 97, 40), frames of 25 ms every
            10 ms, as `log_mel` makes them. Both are standardized by the training part.
        held_out: a speaker, such as "theo"; left out: the publisher's parts.
        augment: a table of `shift` (samples, or frames), `speed`, `gain` (raw audio alone) and
            `noise`, see `Augment`.

    Raises:
        InputError: the files are not found, damaged, incomplete, or no recordings of 8 kHz, 16 bits
            and one channel; an unknown speaker or kind of features.

    Source:
        Z. Jackson et al.: Free Spoken Digit Dataset, CC BY-SA 4.0,
        https://github.com/Jakobovski/free-spoken-digit-dataset.
    """
    if features not in ("raw", "log-mel"):
        raise InputError(f"features is {features!r}; expected 'raw' or 'log-mel'")
    (path,) = find_files(SPOKEN_DIGITS, data_root).values()
    recordings = _read(path)
    speakers = sorted({recording.speaker for recording in recordings})
    if held_out is not None and held_out not in speakers:
        raise InputError(f"there is no speaker {held_out!r}; {nearest(held_out, speakers)}")
    parts: dict[str, list[_Recording]] = {"train": [], "validation": [], "test": []}
    for recording in sorted(recordings):
        parts[_part(recording, held_out)].append(recording)

    examples = []
    for part in parts.values():
        sounds = torch.from_numpy(np.stack([recordings[recording] for recording in part]))
        digits = torch.tensor([recording.digit for recording in part])
        examples.append((sounds.unsqueeze(1) if features == "raw" else log_mel(sounds), digits))
    if features == "raw":
        changes = Augment.parse(augment, ("shift", "speed", "gain", "noise"))
    else:  # a gain adds to a logarithm
        changes = Augment.parse(augment, ("shift", "speed", "noise"), axes=(1,))
    return Data(
        *examples,
        preprocess=Preprocess.standardizing(examples[0][0], per_channel=False),
        augment=changes,
        classes=DIGITS,
    )


def log_mel(sounds: Tensor) -> Tensor:
    """Frames of the log-mel spectrum, `log(1 + 1000 * power)`, so that silence is 0.

    Each frame is of 200 samples (25 ms at 8 kHz) under a periodic Hann window, in the middle of a
    Fourier transform of 256; one begins every 80 samples. The power `|X|^2` is summed over 40
    triangular bands, whose corners are equally spaced on the mel scale `2595 log10(1 + f / 700)`
    from 0 to 4,000 Hz and whose peaks are 1.

    Args:
        sounds: floating (N, S), of magnitude up to 1, S >= 256.

    Returns:
        float32 (N, 1 + (S - 256) // 80, 40).

    Source:
        Mel scale: O'Shaughnessy, Speech Communication, 1987, in the form that HTK uses.

    Example:
        >>> import torch
        >>> log_mel(torch.zeros(1, 8000)).shape
        torch.Size([1, 97, 40])
    """
    window = torch.hann_window(_FRAME)
    spectrum = torch.stft(
        sounds, _FFT, _HOP, _FRAME, window, center=False, return_complex=True
    )  # (N, 129 frequencies, frames)
    power = spectrum.abs().square().transpose(1, 2) @ _mel_bands().T
    return torch.log1p(1000 * power)


def _mel_bands() -> Tensor:
    """The weight of each frequency in each band, (40, 129)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, _BANDS + 2) / 2595) - 1)
    low, peak, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    frequencies = np.linspace(0, RATE / 2, _FFT // 2 + 1)
    rising, falling = (frequencies - low) / (peak - low), (high - frequencies) / (high - peak)
    bands = np.maximum(np.minimum(rising, falling), 0)
    return torch.from_numpy(bands.astype(np.float32))


def _part(recording: _Recording, held_out: str | None) -> str:
    if held_out is not None:
        if recording.speaker == held_out:
            return "test"
    elif recording.take in _TEST:
        return "test"
    return "validation" if recording.take in _VALIDATION else "train"


def _read(path: Path) -> dict[_Recording, np.ndarray]:
    """All recordings, each float32 (8000,) of magnitude up to 1."""
    recordings = {}
    files = read_files(path, lambda name: _NAME.fullmatch(name) is not None, largest=MIB, total=GIB)
    with closing(files):
        for name, content in files:
            match = _NAME.fullmatch(name)
            assert match is not None
            recording = _Recording(int(match[1]), match[2], int(match[3]))
            recordings[recording] = _normalized(_samples(f"{path}: {name}", content))
    speakers = sorted({recording.speaker for recording in recordings}) or ["..."]
    for speaker in speakers:
        for digit in range(10):
            for take in range(_TAKES):
                if (digit, speaker, take) not in recordings:
                    raise InputError(
                        f"{path} has no recording recordings/{digit}_{speaker}_{take}.wav; "
                        f"expected {_TAKES} of each digit by each speaker"
                    )
    return recordings


def _samples(where: str, content: bytes) -> np.ndarray:
    try:
        with wave.open(io.BytesIO(content)) as file:
            kind = (file.getframerate(), 8 * file.getsampwidth(), file.getnchannels())
            count = file.getnframes()
            samples = file.readframes(count)
    except (wave.Error, EOFError, RuntimeError) as error:
        raise InputError(f"{where} is no .wav file: {error or 'it is cut short'}") from error
    if kind != (RATE, 16, 1):
        rate, bits, channels = kind
        raise InputError(
            f"{where} has {rate} samples a second, {bits} bits and {channels} channels; "
            f"expected {RATE}, 16 and 1"
        )
    if not samples or len(samples) != 2 * count:
        raise InputError(f"{where} holds {len(samples) // 2} samples; its header says {count}")
    return np.frombuffer(samples, "<i2")


def _normalized(samples: np.ndarray) -> np.ndarray:
    """A second with the recording in its middle, its largest magnitude 1; silence stays silent."""
    second = np.zeros(SAMPLES, np.float32)
    cut = max(len(samples) - SAMPLES, 0) // 2
    middle = samples[cut : cut + SAMPLES].astype(np.float32)
    start = (SAMPLES - len(middle)) // 2
    second[start : start + len(middle)] = middle / max(np.abs(middle).max(), 1)
    return second
