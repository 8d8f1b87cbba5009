"""What the pages share: forms, charts, pickers, the server's routes, and the parts that run in the browser."""
