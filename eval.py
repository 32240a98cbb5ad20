"""``e2net eval``, in a checkout. See ``python eval.py --help``."""

from e2net.eval import run

if __name__ == "__main__":
    run()
