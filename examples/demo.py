"""Load a bundle, complete two prompts, and say what each step took.

python examples/demo.py models/novelist-onnx
"""

import sys
import time

started = time.perf_counter()
import runtime  # noqa: E402  its import is one of the steps

PROMPTS = ("It was a dark night, and the wind", '"My dear Miss Jane," said he, "I')
MAX_NEW_TOKENS = 48


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/demo.py BUNDLE")
    show("import runtime", started)
    loading = time.perf_counter()
    try:
        model = runtime.load(sys.argv[1])
    except runtime.BundleError as error:
        sys.exit(str(error))
    show("check every file, make the session", loading)
    for prompt in PROMPTS:
        completing = time.perf_counter()
        completion = model.complete(prompt, max_new_tokens=MAX_NEW_TOKENS)
        count = len(completion.token_ids)
        speed = count / (time.perf_counter() - completing)
        show(f"{completion.prompt_tokens} tokens read, {count} written ({speed:,.0f} tokens/s)", completing)
        print(f"\n{prompt}\033[1m{completion}\033[0m\n" if sys.stdout.isatty() else f"\n{prompt}|{completion}\n")
    loaded = [name for name in ("torch", "transformers") if name in sys.modules]
    print(f"PyTorch and transformers in this process: {', '.join(loaded) or 'neither'}")


def show(step: str, since: float) -> None:
    print(f"  {step:<44} {time.perf_counter() - since:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
