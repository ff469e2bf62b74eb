"""Encode throughput of a backbone, and the cost of a live tick split into processor, backbone and head.

python eval/bench_tokens.py [--backbone FOLDER] [--image-size 224] [--frames 32] [--json FILE]

Without --backbone: CLIP with a ViT-S/16 of random weights, since the time does not depend on their values.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import robopolicy
from robopolicy.model.encoders._tokens import FrameTokens


def main() -> None:
    """Measure, print a table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="folder or hub name")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        name = options.backbone or _random_clip(Path(folder))
        size = (options.image_size, options.image_size)
        made = FrameTokens(name, {"front": size}, instructions=["lift the red cube"]).to(device)
    images = {"front": torch.randint(0, 256, (options.frames, *size, 3), dtype=torch.uint8, device=device)}
    one = {"front": images["front"][:1]}
    prompts = made.prompts(["lift the red cube"])
    head = robopolicy.PolicyHead(made.shape[1], robopolicy.ActionSpec(6, 1), window=16, chunk=10).to(device).eval()
    head = head.freeze() if device == "cpu" else head
    state, (tokens, valid) = head.initial_state(1), made(one, prompts)
    pixels = made.backbone.images(one["front"])[:, None]
    encode_ms = _ms(lambda: made(images, prompts), 3)
    parts = {
        "processor": _ms(lambda: made.backbone.images(one["front"])),
        "backbone": _ms(lambda: made.backbone.hidden_states(pixels, prompts)),
        "head": _ms(lambda: head.step(tokens.float(), state, valid)),
    }
    rows: list[dict[str, Any]] = [
        {
            "what": "encode",
            "frames_per_s": 1e3 * options.frames / encode_ms,
            "batch": options.frames,
            "tokens": made.shape,
        }
    ]
    rows += [{"what": f"live tick, {part}", "ms": value} for part, value in parts.items()]
    for row in rows:
        print(
            "  ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "device": device,
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
        }
        command = shlex.join(["python", f"eval/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        options.json.write_text(
            json.dumps({"command": command, "machine": machine, "rows": rows, "bars": []}, indent=2) + "\n"
        )


@torch.inference_mode()
def _ms(run: Callable[[], object], repeats: int = 15) -> float:
    """Median wall time of a call [ms]."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def _random_clip(folder: Path) -> str:
    import transformers as hf
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
    text = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    config = hf.CLIPConfig(text_config=text, vision_config=sizes | {"patch_size": 16}, projection_dim=384)
    hf.CLIPModel(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<unk>": 0, "lift": 1, "the": 2, "red": 3, "cube": 4}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
