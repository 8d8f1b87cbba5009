"""The machine below the library: files, limits, users, resumable work, the sandbox."""
