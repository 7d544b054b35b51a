"""The dispatcher process: `python -m workers.dispatcher`."""

from workers.dispatcher.loop import main

if __name__ == "__main__":
    main()
