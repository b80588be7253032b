"""Training speed of networks by precision and memory format: arms interleaved, as `precision: auto` measures them.

Usage: python benchmarks/precision.py [ARCH…] [--size 128] [--bs 32] [--rounds 5] [--compile]"""
import argparse

ARCHS = ("resnet18", "resnet50", "convnext_tiny", "tf_efficientnet_lite0")


def main() -> None:
    import torch
    from common import record

    from snakecls.workers import keep_freed_memory
    from snakecls.models.backbones import create_backbone
    from snakecls.train.precision_choice import choose_precision

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archs", nargs="*", metavar="ARCH", help="timm names; the issue's four when left out")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--bs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a mode in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="measure the best mode compiled, too")
    parser.add_argument("--dry", action="store_true", help="print, and write nothing to results.csv")
    args = parser.parse_args()
    keep_freed_memory()
    note = f"random weights, batch {args.bs}, {args.device}, {torch.get_num_threads()} threads, SGD, {args.steps} timed steps a round, modes in turn"
    for arch in args.archs or ARCHS:
        model = create_backbone(arch, args.classes, weights="none")
        choice = choose_precision(model, args.size, bs=args.bs, device=args.device, n_steps=args.steps, n_rounds=args.rounds, max_seconds=1e9, compile=args.compile)
        print(f"{arch}: {choice.message}")
        for row in choice.rows:
            values = [args.bs / seconds for seconds in row["seconds"]]
            if args.dry or not values:
                print({key: value for key, value in row.items() if key != "seconds"})
                continue
            chosen = ", chosen" if row["mode"] == choice.best + (" compiled" if choice.compiled else "") else ""
            compiling = f", {row['compile_seconds']} s to compile" if row["compile_seconds"] else ""
            record("precision", f"{arch} {args.size} px, {row['mode']}", values, unit="photos a second in training", note=f"{note}; loss {row['loss']:.4f}, {'sound' if row['sound'] else 'unsound'}{chosen}{compiling}")


if __name__ == "__main__":
    main()
