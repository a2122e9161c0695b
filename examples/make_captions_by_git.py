"""The command line of sd-scripts' make_captions_by_git.py, for scripts and interfaces that call it.

python examples/make_captions_by_git.py train_data --model_id microsoft/git-large-textcaps --caption_extension .caption
"""

import argparse
import sys

from gitfast.cli import main


def command(arguments: list[str]) -> list[str]:
    """Translate arguments of sd-scripts into those of ``gitfast caption``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_data_dir")
    parser.add_argument("--caption_extension", "--caption_extention", default=".caption")
    parser.add_argument("--model_id", default="microsoft/git-large-textcaps")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--max_data_loader_n_workers", type=int, default=None)
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--remove_words", action="store_true", help="remove words that the model claims to read")
    parser.add_argument("--recursive", action="store_true")
    parser.add_argument("--debug", action="store_true", help="taken, without effect: there it logs captions, too")
    parser.add_argument("--pin_memory", action="store_true", help="taken, without effect")
    given = parser.parse_args(arguments)
    # There max_length counts the token that begins a text, too.
    words = ["caption", given.train_data_dir, "--model", given.model_id, "--batch-size", str(given.batch_size)]
    words += ["--max-new-tokens", str(max(1, given.max_length - 1))]
    # Captions that exist are written again, as there.
    words += ["--output", "txt", "--caption-extension", given.caption_extension, "--existing", "overwrite"]
    if given.max_data_loader_n_workers:
        words += ["--workers", str(given.max_data_loader_n_workers)]
    if given.remove_words:
        words += ["--remove-read-words"]
    if given.recursive:
        words += ["--recursive"]
    return words


if __name__ == "__main__":
    sys.exit(main(command(sys.argv[1:])))
