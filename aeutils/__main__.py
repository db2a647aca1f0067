"""python -m aeutils: the course's command line."""

import sys


def main():
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        version = ".".join(map(str, sys.version_info[:3]))
        sys.stderr.write("aeutils needs Python 3.11, 3.12 or 3.13, and this is {}.\n".format(version))  # noqa: UP032
        sys.exit(2)
    try:
        from aeutils.course.cli import command_line
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(command_line())


if __name__ == "__main__":
    main()
