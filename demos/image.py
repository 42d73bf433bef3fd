"""Hands in pictures: for each picture one like it in out/, with mesh, skeleton, side and score drawn on every hand.

python demos/image.py                                    # the samples beside this file
python demos/image.py photo.jpg --save out/hand.glb      # and the mesh, for any 3D viewer
"""

from pathlib import Path

from handmesh.cli import image_main

if __name__ == "__main__":
    raise SystemExit(image_main(pictures=sorted(Path(__file__).parent.glob("sample_*.jpg"))))
