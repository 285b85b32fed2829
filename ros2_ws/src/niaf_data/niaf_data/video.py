"""H.264 in MP4 through PyAV: one short clip per episode and camera."""

from __future__ import annotations

import pathlib
from fractions import Fraction

import av
import numpy as np

from niaf_data.features import DatasetError


def write_video(
    path: pathlib.Path,
    frames: np.ndarray,
    fps: int,
    *,
    crf: int = 12,
    preset: str = "superfast",
    pix_fmt: str = "yuv444p",
    keyframe_every: int = 10,
) -> None:
    """Encode uint8 RGB frames [N, height, width, 3] to an H.264 MP4.

    yuv444p keeps colour at full resolution, which matters for objects a few pixels wide.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width, _ = frames.shape
    options = {"crf": str(crf), "preset": preset, "threads": "1", "bf": "0"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.gop_size = keyframe_every
        stream.codec_context.time_base = Fraction(1, fps)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def read_video(
    path: pathlib.Path, count: int, fps: float, from_timestamp_s: float = 0.0
) -> np.ndarray:
    """Decode `count` RGB frames from `from_timestamp_s` on: uint8 [N, height, width, 3]."""
    if not path.is_file():
        raise DatasetError(f"video file '{path}' is missing; copy it or drop its episodes")
    out: list[np.ndarray] = []
    first_s = from_timestamp_s - 0.5 / fps
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if from_timestamp_s > 0.0 and stream.time_base is not None:
                container.seek(
                    int(from_timestamp_s / stream.time_base), stream=stream, backward=True
                )
            for frame in container.decode(stream):
                if frame.time is not None and frame.time < first_s:
                    continue
                out.append(frame.to_ndarray(format="rgb24"))
                if len(out) == count:
                    break
    except av.FFmpegError as error:
        raise DatasetError(f"video file '{path}' cannot be decoded: {error}") from error
    if len(out) != count:
        raise DatasetError(
            f"video file '{path}' holds {len(out)} frames from {from_timestamp_s:.3f} s on, "
            f"metadata says {count}; the recording was cut short, drop the episode"
        )
    return np.stack(out)
