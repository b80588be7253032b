"`python -m snakecls` is the command `snakecls`."
from snakecls.start import main

if __name__ == "__main__":
    main()
