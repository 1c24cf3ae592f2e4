"""What the command `vnfs` runs."""

import os
import signal


def program() -> None:
    """`main`, without the tidying up of the interpreter, which takes longer than much of what is asked. Everything of
    ours is closed when `main` ends, and the kernel takes the memory."""
    # While modules are loaded there is nothing to undo, and a signal has only to end us.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stream in range(3):  # else a file that we open takes the place of one that the caller closed
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    from vnfsbuild.cli.main import main

    try:
        main()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    program()
