"""torchrun, tied to the process that started it: `python -m flows.ranks.agent PARENT_PID <torchrun arguments>`."""

from __future__ import annotations

import sys

from flows.ranks.lifeline import die_with_parent


def main() -> None:
    """Run torchrun until the ranks end or the parent dies."""
    die_with_parent(int(sys.argv[1]))
    from torch.distributed.run import main as torchrun

    torchrun(sys.argv[2:])


if __name__ == "__main__":
    main()
