"""Hands through a video: the same video in out/ with tracked, smoothed meshes, and how many frames have one.

python demos/video.py clip.mp4                           # writes out/clip_hands.mp4
python demos/video.py clip.mp4 --save out/clip           # and out/clip/000000.npz, ... for each frame with hands
"""

from handmesh.cli import video_main

if __name__ == "__main__":
    raise SystemExit(video_main())
