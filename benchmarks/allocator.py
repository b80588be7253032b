"""What `keep_freed_memory` saves: the same batches in two processes, in turn. Usage: python benchmarks/allocator.py [PAIRS]"""
import json
import subprocess
import sys

WORK = """
import json, sys, time, torch
from snakecls.workers import keep_freed_memory
if sys.argv[1] == "kept": keep_freed_memory()
from snakecls.models.backbones import create_backbone
model = create_backbone("tf_efficientnet_lite0", 14).to(memory_format=torch.channels_last)
def seconds(size, training):
    batch = torch.randn(16, 3, size, size).contiguous(memory_format=torch.channels_last)
    model.train(training)
    times = []
    for i in range(5):
        start = time.process_time()
        with torch.set_grad_enabled(training):
            out = model(batch)
            if training: out.logsumexp(1).sum().backward()
        if i: times.append(time.process_time() - start)
    return min(times) / 16
print(json.dumps({"inference 352 px": seconds(352, False), "training 224 px": seconds(224, True)}))
"""


def main(pairs: int = 5) -> None:
    from common import record

    ratios: dict[str, list[float]] = {}
    for _ in range(pairs):
        kept, given_back = (json.loads(subprocess.run([sys.executable, "-c", WORK, arm], capture_output=True, text=True, check=True).stdout) for arm in ("kept", "given back"))
        for name in kept:
            ratios.setdefault(name, []).append(given_back[name] / kept[name])
    for name, values in ratios.items():
        record("allocator", name, values, unit="CPU seconds given back / kept", note="tf_efficientnet_lite0 float32, batch 16, pairs of processes in turn; above 1 is faster with keep_freed_memory")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
