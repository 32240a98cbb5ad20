"""Predicts a picture's map with a file of ``python -m e2net.export``; needs numpy, OpenCV and onnxruntime alone.

python onnx_predict.py model.onnx frog.jpg frog_map.png [SIZE]; a file of one size alone looks at that one.
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def main(file, picture, output, size=None):
    """Reads, resizes, predicts, writes: a probability as 0 to 255, labels, depth in task.result_scale."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    step, sides = int(about["size_multiple"]), int(size) if size else json.loads(about["size"])
    height, width = (max(1, round(side / step)) * step for side in (sides if isinstance(sides, list) else [sides] * 2))

    image = cv2.imread(picture)
    if image is None:
        raise SystemExit(f"{picture}: expected a picture, found none that OpenCV can read")
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    (h, w), factor = rgb.shape[:2], max(1, int(min(rgb.shape[0] / height, rgb.shape[1] / width)))
    # Blocks of pixels are averaged first where a picture is much larger, as in training.
    small = cv2.resize(rgb, (round(w / factor), round(h / factor)), interpolation=cv2.INTER_AREA)
    inputs = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)[None]

    (maps,) = session.run(None, {"image": np.ascontiguousarray(inputs)})
    values = cv2.resize(maps[0].transpose(1, 2, 0), (w, h), interpolation=cv2.INTER_LINEAR)
    task = json.loads(about["task_settings"])
    if about["task"] == "semantic":
        first = task.get("first_label", 0)
        result = (values.argmax(2) + first).astype(np.uint8 if first + values.shape[2] <= 256 else np.uint16)
    elif about["task"] == "depth":
        units = np.rint(values / task.get("result_scale", 0.001))
        result = units.clip(1, 65535).astype(np.uint16)  # 0 would be unknown
    else:
        result = np.rint(values * 255).astype(np.uint8)
    if not cv2.imwrite(output, result):
        raise SystemExit(f"{output}: cannot be written; is its folder there?")
    print(f"{output}: task {about['task']}, looked at as {width}x{height}")


if __name__ == "__main__":
    main(*sys.argv[1:])
