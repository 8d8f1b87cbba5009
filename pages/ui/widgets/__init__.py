"""Parts that pages share: forms, fields, links, image grids, tables, formats."""
