"""Hands live: your camera's picture with a 3D mesh on every hand, frames a second and milliseconds in the corner.

    python demos/webcam.py                                   # the first camera; without one, the sample clip
    python demos/webcam.py --source clip.mp4                 # or pictures, a camera's index or address, or: sample
    python demos/webcam.py --source sample --no-window --record out/sample.mp4

Keys, in the window: m mesh, k skeleton, x mirror, g snapshot to out/snapshot.glb, r record to out/webcam.mp4,
t smoothing, h measure your hand, q or Esc quit. Without a display it records to out/webcam.mp4 instead of opening a
window.
"""

from handmesh.cli import webcam_main

if __name__ == "__main__":
    raise SystemExit(webcam_main())
