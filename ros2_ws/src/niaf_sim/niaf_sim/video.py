"""Writes the demo's video: H.264 in MP4, 4:2:0, index in front, so that browsers play it."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BAR_PX = 40
_TIME_BASE = 90_000


class VideoWriter:
    """Frames with a caption bar. Each frame carries its own time, so dropped frames do not speed
    the video up. Use it as a context manager."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        nominal_fps: int = 10,
        crf: int = 23,
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"H.264 4:2:0 needs even sizes, not {width}x{height}")
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._size = (width, height + _BAR_PX)
        self._container = av.open(str(self.path), "w", options={"movflags": "+faststart"})
        stream = self._container.add_stream("libx264", rate=nominal_fps)
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "veryfast", "crf": str(crf)}
        stream.codec_context.time_base = Fraction(1, _TIME_BASE)
        stream.codec_context.thread_count = 1
        self._stream = stream
        self._font = ImageFont.load_default(size=17)
        self._last_pts = -1
        self.frames = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        rgb: np.ndarray,
        time_s: float,
        left: str,
        right: str = "",
        colour: tuple[int, int, int] = (235, 235, 235),
    ) -> None:
        """Append uint8[height, width, 3] shown at ``time_s`` under a caption."""
        width, height = self._size
        if rgb.shape != (height - _BAR_PX, width, 3):
            raise ValueError(
                f"frame is {rgb.shape}, the video was opened for {(height - _BAR_PX, width, 3)}"
            )
        pts = round(time_s * _TIME_BASE)
        if pts <= self._last_pts:
            return  # a frame older than the last one cannot be shown any more
        canvas = Image.new("RGB", self._size, (24, 26, 30))
        canvas.paste(Image.fromarray(rgb), (0, 0))
        draw = ImageDraw.Draw(canvas)
        y = height - _BAR_PX // 2
        draw.text((10, y), left, font=self._font, fill=(235, 235, 235), anchor="lm")
        if right:
            draw.text((width - 10, y), right, font=self._font, fill=colour, anchor="rm")
        frame = av.VideoFrame.from_image(canvas)
        frame.pts = pts
        frame.time_base = Fraction(1, _TIME_BASE)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        self._last_pts = pts
        self.frames += 1

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        if self._container is None:
            return
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        self._container = None
