"""`python -m stdenoise`, for launchers such as torchrun."""

from stdenoise.cli import main

if __name__ == "__main__":
    main(prog_name="stdenoise")
