"""Talk to a trained dialogue model, in the terminal, through a pipe or in the browser (--web). See --help."""

import argparse
import sys

DESCRIPTION = """Talk to a dialogue model.

  python chat.py RUN                          in the terminal; /help lists its commands
  python chat.py RUN < messages.txt           a reply for each line of a pipe or a file, one talk
  python chat.py RUN --web                    in the browser, needs pip install -e ".[chat]"
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{message}; see --help\n")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 0 to {2**31 - 1}")
    return int(text)


def main() -> int:
    parser = Parser("chat.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="RUN", help="a run directory, one of its checkpoints, or an export/")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="an option of the decoding, top_k=20; may be repeated; /options lists them")  # fmt: skip
    parser.add_argument(
        "--seed", type=_seed, help="the same replies to the same messages; default: others each time"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU where there is one"
    )
    parser.add_argument("--web", action="store_true", help="serve a page for the browser")
    parser.add_argument("--host", help="its address; default: 127.0.0.1, which only this machine reaches")
    parser.add_argument("--port", type=int, help="its port; default: 7860")
    arguments = parser.parse_args()
    for name in ("host", "port"):
        if getattr(arguments, name) is not None and not arguments.web:
            parser.error(f"--{name}: is of --web")
    if arguments.web and arguments.seed is not None:
        parser.error("--seed: on the page of --web each visitor chooses one")
    page = (arguments.host or "127.0.0.1", 7860 if arguments.port is None else arguments.port)
    try:
        # Not before the arguments are known to be right.
        from launch.chat import main as chat

        return chat(
            arguments.path,
            arguments.seed,
            arguments.device,
            arguments.settings,
            page if arguments.web else None,
        )
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
