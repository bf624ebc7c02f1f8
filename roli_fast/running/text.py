"""Tables as text."""


def align(rows: list[list[str]]) -> list[str]:
    """Columns of equal width, a rule under the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return [lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])]


def duration(seconds: float) -> str:
    """ "4.2 s", "2 min 13 s", "1 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return "{} h {:02d} min".format(*divmod(round(seconds / 60), 60))
