"""``e2net train``, in a checkout. See ``python train.py --help``."""

from e2net.train import run

if __name__ == "__main__":
    run()
