"""YOLOv5 detectors of v6.0 to v7.0, written from their published architecture.

plan = standard("n", names)     a published size; or Checkpoint.plan, from a file
model = YoloV5(plan)            images [b, 3, h, w] -> raw outputs [b, predictions, 5 + classes]
decode(raw, plan, ...)          -> boxes, scores and classes

Nothing is imported here: plans and decoding need no torch.
"""
